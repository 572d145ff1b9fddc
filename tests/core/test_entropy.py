"""Entropy coding: every value comes back, at the rate the tables promise, or the page is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kakeya_jax.entropy import LANES, CodedPages, CodingTables, decode_pages, encode_pages, integer_frequencies
from kakeya_jax.entropy.frequencies import PRECISION_BITS, cross_entropy

PAGES, COUNT = 5, 403
"""The last step of a page is not full."""


def split(coded: CodedPages) -> list[bytes]:
    ends = np.cumsum(coded.nbytes, dtype=np.int64)
    return [coded.data[end - size : end] for end, size in zip(ends, coded.nbytes, strict=True)]


def gaussian_tables(deviations: np.ndarray, half: int = 20) -> CodingTables:
    symbols = np.arange(-half, half + 1)
    p = np.exp(-0.5 * (symbols / deviations[:, None]) ** 2)
    p[np.abs(symbols) > np.ceil(5 * deviations)[:, None]] = 0
    return CodingTables(frequencies=integer_frequencies(np.pad(p, ((0, 0), (0, 1)))))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    pages=st.integers(1, 4),
    count=st.integers(1, 70),
    rows=st.integers(1, 6),
    half=st.integers(0, 126),
    spread=st.sampled_from([0.0, 0.4, 3.0, 200.0, 20000.0]),
    concentration=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_any_values_come_back(
    seed: int, pages: int, count: int, rows: int, half: int, spread: float, concentration: float
):
    rng = np.random.default_rng(seed)
    p = rng.gamma(concentration, size=(rows, 2 * half + 2))
    p[rng.random(p.shape) < 0.3] = 0  # symbols outside a row's alphabet
    p[:, half] += 1e-3
    tables = CodingTables(frequencies=integer_frequencies(p))
    values = np.clip(np.rint(spread * rng.standard_normal((pages, count))), -(2**15), 2**15 - 1).astype(np.int16)
    of_row = rng.integers(0, rows, count)
    coded = encode_pages(values, of_row, tables)
    assert len(coded.data) == coded.nbytes.sum()
    np.testing.assert_array_equal(decode_pages(split(coded), coded.checksums, of_row, tables), values)


def test_one_page_is_decoded_alone():
    rng = np.random.default_rng(0)
    tables = gaussian_tables(np.array([0.3, 2.0]))
    rows = rng.integers(0, 2, COUNT)
    values = np.rint(rng.standard_normal((PAGES, COUNT)) * 1.5).astype(np.int16)
    coded = encode_pages(values, rows, tables)
    alone = decode_pages(split(coded)[3:4], coded.checksums[3:4], rows, tables)
    np.testing.assert_array_equal(alone[0], values[3])
    single = encode_pages(values[3:4], rows, tables)
    assert single.data == split(coded)[3]


def test_rate_is_the_cross_entropy():
    rng = np.random.default_rng(1)
    deviations = np.geomspace(0.2, 4, 50)
    tables = gaussian_tables(deviations)
    rows = np.repeat(np.arange(50), 128)
    values = np.rint(rng.standard_normal((PAGES, rows.size)) * deviations[rows]).astype(np.int16)
    half = tables.frequencies.shape[1] // 2 - 1
    counts = np.zeros(tables.frequencies.shape, int)
    np.add.at(counts, (np.broadcast_to(rows, values.shape), values + half), 1)
    assert (counts[tables.frequencies == 0] == 0).all()
    ideal = cross_entropy(counts, tables.frequencies)
    states = PAGES * LANES * 32
    spent = 8 * len(encode_pages(values, rows, tables).data)
    assert ideal < spent < ideal + states
    # Lanes start with 16 bits each that carry nothing, and end half a word below the next one.
    assert spent - ideal == pytest.approx(0.75 * states, rel=0.1)


def test_an_escape_costs_its_code_and_sixteen_bits():
    tables = gaussian_tables(np.array([1.0]))
    rows = np.zeros(COUNT, int)
    calm = np.zeros((1, COUNT), np.int16)
    wild = calm.copy()
    wild[0, [7, 100, 399]] = 21, -32768, 32767
    extra = len(encode_pages(wild, rows, tables).data) - len(encode_pages(calm, rows, tables).data)
    assert 3 * 16 <= 8 * extra <= 3 * (16 + PRECISION_BITS) + 32


@pytest.mark.parametrize("where", [0, 40, 70, -1])
def test_a_damaged_page_is_refused_and_the_others_are_not(where: int):
    rng = np.random.default_rng(2)
    tables = gaussian_tables(np.array([1.0]))
    rows = np.zeros(COUNT, int)
    values = np.rint(rng.standard_normal((PAGES, COUNT))).astype(np.int16)
    coded = encode_pages(values, rows, tables)
    pages = split(coded)
    broken = bytearray(pages[2])
    broken[where] ^= 4
    with pytest.raises(ValueError, match="page 2 is damaged"):
        decode_pages([*pages[:2], bytes(broken), *pages[3:]], coded.checksums, rows, tables)
    with pytest.raises(ValueError, match="page 2 is damaged"):
        decode_pages([*pages[:2], pages[2][:-2], *pages[3:]], coded.checksums, rows, tables)
    kept = [0, 1, 3, 4]
    read = decode_pages([pages[i] for i in kept], coded.checksums[kept], rows, tables)
    np.testing.assert_array_equal(read, values[kept])


def test_other_tables_are_noticed():
    rng = np.random.default_rng(3)
    rows = np.zeros(COUNT, int)
    values = np.rint(rng.standard_normal((PAGES, COUNT))).astype(np.int16)
    coded = encode_pages(values, rows, gaussian_tables(np.array([1.0])))
    with pytest.raises(ValueError, match="made with other tables"):
        decode_pages(split(coded), coded.checksums, rows, gaussian_tables(np.array([1.1])))


def test_frequencies_sum_to_4096_and_leave_nothing_impossible():
    rng = np.random.default_rng(4)
    p = rng.gamma(0.05, size=(200, 40))
    p[:, 3] += 1e-9
    f = integer_frequencies(p).astype(int)
    assert (f.sum(axis=1) == 4096).all()
    np.testing.assert_array_equal(f > 0, (p > 0) | (np.arange(40) == 39))
    wasted = np.sum(p * np.log2(p / p.sum(1, keepdims=True) * 4096 / f), where=p > 0) / p.sum()
    assert 0 < wasted < 0.016  # bits per symbol that rounding costs; 40 ones of 4096 alone take 0.014
    np.testing.assert_array_equal(integer_frequencies(np.array([[1.0, 0.0]])), [[4095, 1]])


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (np.zeros((2, 4)), "row 0 has no symbol"),
        (np.array([[1.0, 2.0], [0.0, 2.0]]), "row 1 has no symbol"),
        (np.array([[1.0, np.nan]]), "finite and not negative"),
        (np.array([[1.0, -1.0, 0.5]]), "finite and not negative"),
        (np.ones((1, 257)), "2 to 256 symbols"),
    ],
)
def test_probabilities_that_are_none_are_refused(p: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        integer_frequencies(p)


def test_tables_that_no_coder_can_use_are_refused():
    with pytest.raises(ValueError, match="sum to 4096"):
        CodingTables(frequencies=np.array([[4096, 0]], np.uint16))
    with pytest.raises(ValueError, match="sum to 4096"):
        CodingTables(frequencies=np.array([[4000, 1]], np.uint16))
    with pytest.raises(ValueError, match="uint16"):
        CodingTables(frequencies=np.array([[4095.0, 1.0]]))
    with pytest.raises(ValueError, match="even number of symbols"):
        encode_pages(np.zeros((1, 3), np.int16), np.zeros(3, int), CodingTables(
            frequencies=np.array([[4094, 1, 1]], np.uint16)))  # fmt: skip


def test_nothing_to_code():
    tables = gaussian_tables(np.array([1.0]))
    coded = encode_pages(np.zeros((0, COUNT), np.int16), np.zeros(COUNT, int), tables)
    assert (coded.data, len(coded.nbytes)) == (b"", 0)
    assert decode_pages([], coded.checksums, np.zeros(COUNT, int), tables).shape == (0, COUNT)

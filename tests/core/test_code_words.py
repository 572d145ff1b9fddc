"""Words that kernels read, and levels as bytes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kakeya_jax import bitpack, code_words
from kakeya_jax.byte_levels import byte_levels, rounded
from kakeya_jax.lloyd_max import gaussian_levels


@settings(max_examples=25, deadline=None)  # each pair of bits and count compiles
@given(st.sampled_from([1, 2, 3, 4, 5, 6, 8]), st.sampled_from([5, 16, 24, 48]), st.integers(0, 2**32 - 1))
def test_packing_is_undone_and_takes_as_many_bytes_as_any(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (3, count))
    packed = code_words.pack(jnp.asarray(codes), bits)
    assert packed.shape == (3, bitpack.packed_nbytes(count, bits))
    np.testing.assert_array_equal(code_words.unpack(packed, bits, count), codes)


def test_two_bits_are_in_nibbles_by_quad() -> None:
    """Code 4 i + k is in nibble 4 (i % 2) + k, in its lower half for quads 0 and 1."""
    for code in range(16):
        codes = np.zeros(16, np.int32)
        codes[code] = 3
        word = int(np.asarray(code_words.pack(jnp.asarray(codes), 2)).view(np.uint32)[0])
        quad, k = divmod(code, 4)
        assert word == 3 << (4 * (4 * (quad % 2) + k) + 2 * (quad // 2))


def test_the_highest_of_three_bits_is_a_shift_from_bit_two_of_its_nibble() -> None:
    for code in range(16):
        codes = np.zeros(16, np.int32)
        codes[code] = 4
        packed = np.asarray(code_words.pack(jnp.asarray(codes), 3))
        assert not packed[:4].any()
        quad, k = divmod(code, 4)
        assert int(packed[4:].view(np.uint16)[0]) == 1 << (4 * k + (quad + 2) % 4)


def test_four_bits_are_sign_and_magnitude() -> None:
    packed = np.asarray(code_words.pack(jnp.arange(16), 4))
    nibbles = [int(byte) >> shift & 15 for byte in packed for shift in (0, 4)]
    assert nibbles == [7, 6, 5, 4, 3, 2, 1, 0, *range(8, 16)]


def test_six_bits_are_signs_with_places_in_a_table_and_then_tables() -> None:
    packed = np.asarray(code_words.pack(jnp.asarray([0, 5, 24, 31, 32, 39, 40, 63] * 4), 6))
    assert packed.shape == (24,)
    np.testing.assert_array_equal(packed[:12], packed[12:])  # unit after unit
    nibbles = [int(byte) >> shift & 15 for byte in packed[:8] for shift in (0, 4)]
    assert nibbles == [7, 2, 7, 0, 8, 15, 8, 15] * 2
    tables = [3, 3, 0, 0, 0, 0, 1, 3] * 2
    np.testing.assert_array_equal(packed[8:12], code_words.pack(jnp.asarray(tables), 2))


def test_a_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="need"):
        code_words.unpack(jnp.zeros(5, jnp.uint8), 2, 16)
    with pytest.raises(ValueError, match="need"):
        code_words.unpack(jnp.zeros(7, jnp.uint8), 3, 16)
    with pytest.raises(ValueError, match="need"):
        code_words.unpack(jnp.zeros(11, jnp.uint8), 6, 16)


@pytest.mark.parametrize(("bits", "most"), [(2, 1.00001), (3, 1.0001), (4, 1.0006)])
def test_levels_as_bytes_cost_next_to_nothing(bits: int, most: float) -> None:
    """Of the mean squared error of a unit Gaussian."""
    x = np.random.default_rng(0).standard_normal(1_000_000)
    levels = gaussian_levels(bits)

    def error(table: np.ndarray) -> float:
        return float(np.mean(np.square(x - table[np.searchsorted((table[1:] + table[:-1]) / 2, x)])))

    assert error(rounded(levels)) < most * error(levels)


def test_bytes_of_negative_levels_are_inverted() -> None:
    table, unit = byte_levels(tuple(map(float, gaussian_levels(4))))
    assert all(low == ~high for low, high in zip(table, reversed(table), strict=True))
    assert min(table) >= -128
    assert max(table) <= 127
    assert unit > 0


def test_levels_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="not symmetric"):
        byte_levels((-1.0, -0.5, 0.6, 1.0))
    with pytest.raises(ValueError, match="too close"):
        byte_levels((-1.0, -0.0011, -0.001, 0.001, 0.0011, 1.0))

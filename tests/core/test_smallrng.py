import itertools

import numpy as np
import pytest

from kakeya_jax import smallrng

SEED = 0xCAFEBABE


def test_xoshiro_matches_the_published_vector() -> None:
    expected = [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205]
    assert list(itertools.islice(smallrng.xoshiro(1, 2, 3, 4), 5)) == expected


def test_seed_expansion_is_that_of_a_64_bit_pcg() -> None:
    def pcg32(state: int) -> tuple[int, int]:
        """One step by the PCG paper's definition (XSH-RR output of the advanced state), in numpy integers."""
        with np.errstate(over="ignore"):
            new = np.uint64(state) * np.uint64(6364136223846793005) + np.uint64(11634580027462260723)
        word = np.uint32((((new >> np.uint64(18)) ^ new) >> np.uint64(27)) & np.uint64(0xFFFFFFFF))
        bits = np.binary_repr(word, 32)
        turn = int(new >> np.uint64(59))
        return int(new), int(bits[32 - turn :] + bits[: 32 - turn], 2)

    state, words = SEED, []
    for _ in range(8):
        state, word = pcg32(state)
        words.append(word)
    state_words = [words[i] + 2**32 * words[i + 1] for i in (0, 2, 4, 6)]
    expected = list(itertools.islice(smallrng.xoshiro(*state_words), 4))
    assert list(itertools.islice(smallrng.raw_draws(SEED), 4)) == expected


def test_sign_patterns_are_prefixes_and_balanced() -> None:
    long = smallrng.signs(SEED, 4096)
    np.testing.assert_array_equal(smallrng.signs(SEED, 64), long[:64])
    assert set(np.unique(long)) == {-1.0, 1.0}
    assert abs(long.mean()) < 0.05
    assert not np.array_equal(long, smallrng.signs(SEED + 1, 4096))


def test_signs_are_the_top_bits() -> None:
    draws = list(itertools.islice(smallrng.raw_draws(3), 20))
    np.testing.assert_array_equal(smallrng.signs(3, 20), [1.0 if d >= 2**63 else -1.0 for d in draws])


def test_index_is_the_high_word_of_the_product() -> None:
    assert smallrng.index_below(iter([2**63]), 10) == 5
    assert smallrng.index_below(iter([2**64 - 1, 0]), 1) == 0


def test_index_rejects_the_last_incomplete_zone() -> None:
    # For n = 3 the zone ends at 3 * 2**62 - 1: the low word of (2**64 - 1) * 3 is beyond it, that of 1 * 3 is not.
    assert smallrng.index_below(iter([2**64 - 1, 1]), 3) == 0


def test_first_index_table_is_in_range() -> None:
    table = smallrng.first_index_table(SEED, 600)
    assert table.shape == (601,)
    assert np.all(table[1:] < np.arange(1, 601))
    assert np.all(table >= 0)
    assert table[512] == smallrng.index_below(smallrng.raw_draws(SEED), 512)


def test_normals_fill_columns_first() -> None:
    omega = smallrng.normal_matrix(5, 40, 30)
    np.testing.assert_array_equal(smallrng.normal_matrix(5, 40, 10), omega[:, :10])
    np.testing.assert_array_equal(smallrng.normal_matrix(5, 1200, 1)[:, 0], smallrng.normal_matrix(5, 40, 30).T.ravel())
    u1, u2 = ((d >> 41) / 2**23 for d in itertools.islice(smallrng.raw_draws(5), 2))
    u1 = u1 * (1 - 2**-23) + 2**-23
    assert omega[0, 0] == pytest.approx(np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2), abs=1e-5)


def test_normals_have_normal_moments() -> None:
    omega = smallrng.normal_matrix(SEED, 200, 100)
    assert abs(omega.mean()) < 0.02
    assert omega.std() == pytest.approx(1, abs=0.02)
    assert np.mean(omega**4) == pytest.approx(3, abs=0.2)


def test_cached_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        smallrng.signs(SEED, 8)[0] = 5

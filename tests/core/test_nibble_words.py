"""Codes of 4 bits as kernels read them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kakeya_jax import bitpack, nibble_words


@given(st.sampled_from([5, 6, 8, 24]), st.integers(0, 2**32 - 1))
def test_packing_is_undone_and_takes_half_a_byte_each(count: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(-8, 8, (3, count))
    packed = nibble_words.pack(jnp.asarray(levels))
    assert packed.shape == (3, bitpack.packed_nbytes(count, 4))
    np.testing.assert_array_equal(nibble_words.unpack(packed, count), levels)


def test_two_masks_make_bytes_of_a_word() -> None:
    levels = np.array([-7, 0, 3, 7, 1, -1, -8, 5])
    word = np.asarray(nibble_words.pack(jnp.asarray(levels))).view(np.uint32)
    for shift, four in ((4, levels[:4]), (0, levels[4:])):
        as_bytes = (word << np.uint32(shift) & np.uint32(0xF0F0F0F0)).view(np.int8)
        np.testing.assert_array_equal(as_bytes, 16 * four)


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_words_that_a_lane_reads_are_of_different_groups(dim: int) -> None:
    order = np.asarray(nibble_words.to_lane_order(jnp.arange(dim)))
    by_lane = order.reshape(4, dim // 32, 8)
    for lane in range(4):
        for group in range(dim // 32):
            np.testing.assert_array_equal(by_lane[lane, group], 32 * group + 8 * lane + np.arange(8))
    np.testing.assert_array_equal(nibble_words.from_lane_order(jnp.asarray(order)), np.arange(dim))


def test_other_dimensions_stay_in_order_and_wrong_sizes_are_refused() -> None:
    np.testing.assert_array_equal(nibble_words.to_lane_order(jnp.arange(40)), np.arange(40))
    with pytest.raises(ValueError, match="16 values of 4 bits need 8 bytes, got 7"):
        nibble_words.unpack(jnp.zeros(7, jnp.uint8), 16)

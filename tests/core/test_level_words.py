"""Codes that are their levels, as kernels read them."""

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import bitpack, level_words

LOWEST = {2: 0, 4: -8}


@pytest.mark.parametrize(("bits", "count"), [(2, 24), (2, 48), (4, 5), (4, 24)])
def test_packing_is_undone_and_takes_as_many_bytes_as_any(bits: int, count: int) -> None:
    levels = np.random.default_rng(count).integers(LOWEST[bits], LOWEST[bits] + 2**bits, (3, count))
    packed = level_words.pack(jnp.asarray(levels), bits)
    assert packed.shape == (3, bitpack.packed_nbytes(count, bits))
    np.testing.assert_array_equal(level_words.unpack(packed, bits, count), levels)


def test_masks_make_bytes_of_a_word() -> None:
    levels = np.array([-7, 0, 3, 7, 1, -1, -8, 5])
    word = np.asarray(level_words.pack(jnp.asarray(levels), 4)).view(np.uint32)
    for shift, four in ((4, levels[:4]), (0, levels[4:])):
        as_bytes = (word << np.uint32(shift) & np.uint32(0xF0F0F0F0)).view(np.int8)
        np.testing.assert_array_equal(as_bytes, 16 * four)
    levels = np.random.default_rng(0).integers(0, 4, 16)
    word = np.asarray(level_words.pack(jnp.asarray(levels), 2)).view(np.uint32)
    for quad in range(4):
        as_bytes = (word >> np.uint32(2 * quad) & np.uint32(0x03030303)).view(np.int8)
        np.testing.assert_array_equal(as_bytes, levels[4 * quad : 4 * quad + 4])


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_words_that_a_lane_reads_are_of_different_groups(dim: int) -> None:
    order = np.asarray(level_words.to_lane_order(jnp.arange(dim)))
    by_lane = order.reshape(4, dim // 32, 8)
    for lane in range(4):
        for group in range(dim // 32):
            np.testing.assert_array_equal(by_lane[lane, group], 32 * group + 8 * lane + np.arange(8))
    np.testing.assert_array_equal(level_words.from_lane_order(jnp.asarray(order)), np.arange(dim))


def test_other_dimensions_stay_in_order_and_wrong_sizes_are_refused() -> None:
    np.testing.assert_array_equal(level_words.to_lane_order(jnp.arange(40)), np.arange(40))
    with pytest.raises(ValueError, match="16 values of 4 bits need 8 bytes, got 7"):
        level_words.unpack(jnp.zeros(7, jnp.uint8), 4, 16)

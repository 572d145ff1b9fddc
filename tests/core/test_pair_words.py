"""Codes as pairs of small floats."""

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import bitpack, pair_words


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("count", [5, 48])
def test_packing_is_undone_and_takes_as_many_bytes_as_any(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 1 << bits, (3, count))
    packed = pair_words.pack(jnp.asarray(codes), bits)
    assert packed.shape == (3, bitpack.packed_nbytes(count, bits))
    np.testing.assert_array_equal(pair_words.unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_mask_makes_floats_of_a_pair(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, 32 // bits)
    word = np.asarray(pair_words.pack(jnp.asarray(codes), bits)).view(np.uint32)
    mask = np.uint32((1 << bits) - 1) * np.uint32(0x10001)
    for pair in range(16 // bits):
        field = word >> np.uint32(bits * pair) & mask | np.uint32(0x64006400)
        np.testing.assert_array_equal(field.view(np.float16), 1024 + codes[2 * pair : 2 * pair + 2])

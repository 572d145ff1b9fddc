"""Packed codes become the bytes of their levels: every width that kernels read, in the emulator."""

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import code_words, level_words
from kakeya_jax.klt_layout import quantizer_bytes
from kakeya_jax.pallas_kernels.attention import emulated_ops
from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit, decoder_words
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes

LANES = 32


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_codes_become_bytes(bits: int) -> None:
    """Every lane decodes a unit of its own; together they have every code."""
    table, _ = quantizer_bytes(bits)
    indices = np.random.default_rng(0).permutation(np.arange(LANES * 16) % 2**bits).reshape(LANES, 16)
    words = np.asarray(code_words.pack(jnp.asarray(indices), bits)).view(np.uint32)
    codes = Codes(bits=bits, table=() if bits == 8 else table)
    with emulated_ops.launch(1, 1):
        unit = [column[None] for column in words.T.copy()]
        found = decode_unit(emulated_ops, unit, codes, [emulated_ops.integer(word) for word in decoder_words(codes)])
    assert len(unit) == codes.unit_words
    levels = np.stack([np.asarray(each).reshape(-1).view(np.int8).reshape(LANES, 4) for each in found], axis=1)
    np.testing.assert_array_equal(levels.reshape(LANES, 16), np.array(table)[indices])


@pytest.mark.parametrize(("bits", "lowest", "step"), [(2, 0, 1), (4, -8, 16)])
def test_codes_that_are_their_levels_become_bytes(bits: int, lowest: int, step: int) -> None:
    levels = np.random.default_rng(0).permutation(np.arange(LANES * 16) % 2**bits).reshape(LANES, 16) + lowest
    words = np.asarray(level_words.pack(jnp.asarray(levels), bits)).view(np.uint32)
    with emulated_ops.launch(1, 1):
        unit = [column[None] for column in words.T.copy()]
        found = decode_unit(emulated_ops, unit, Codes(bits=bits, table=(), halfway=False), [])
    decoded = np.stack([np.asarray(each).reshape(-1).view(np.int8).reshape(LANES, 4) for each in found], axis=1)
    np.testing.assert_array_equal(decoded.reshape(LANES, 16), step * levels)

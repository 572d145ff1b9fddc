"""Codes of pairs of channels as kernels read them: ``besicovitch``'s directions and magnitudes, in tiles of 64 tokens.

A code of ``width`` bits is all that a pair of channels has of a token. A warp attends to a tile of 64 tokens and 32
channels at a time; the codes that one of its 32 lanes needs are a string of 32 codes, in the order in which matrix
products take them: lane ``4 g + t`` has those of pairs ``g`` and ``g + 8`` of the sixteen, and of tokens ``16 t`` to
``16 t + 15``. Code ``8 i + 4 h + 2 s + far`` is of token ``4 i + 2 s + h`` of these and of pair ``g + 8 far``.

So a lane has ``width`` words of 32 bits. A tile has first the first four words of all lanes, then the next two, then
the next one, as far as there are, so that each lane reads four, two or one at once and all lanes read side by side.
"""

import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, Int, UInt8

TILE = 64
"""Tokens,"""
PAIRS = 16
"""and pairs of channels, whose codes lie together."""
LANES = 32
WIDEST = 8
"""Bits of a code."""

_WORD = 4


def in_tiles(tokens: int, pairs: int, width: int) -> bool:
    """Whether codes of so many tokens and pairs are packed in tiles."""
    return tokens % TILE == 0 and pairs % PAIRS == 0 and width <= WIDEST


def tile_nbytes(pairs: int, width: int) -> int:
    """Bytes of 64 tokens."""
    return TILE * pairs * width // 8


def parts_of(width: int) -> list[tuple[int, int]]:
    """Words of a lane that are read at once: the first of them, and how many; four, two or one."""
    found, first = [], 0
    while first < width:
        count = next(size for size in (4, 2, 1) if first + size <= width)
        found.append((first, count))
        first += count
    return found


def pack(codes: Int[Array, "n pairs"], width: int) -> UInt8[Array, "tiles packed"]:
    """Packs codes, each in ``[0, 2**width)``, of whole tiles (``in_tiles``); ``[n / 64, tile_nbytes]``."""
    n, pairs = codes.shape
    # Token 16 t + 4 i + 2 s + h, pair 16 b + 8 far + g.
    fields = codes.reshape(n // TILE, 4, 4, 2, 2, pairs // PAIRS, 2, PAIRS // 2)
    fields = fields.transpose(0, 5, 7, 1, 2, 4, 3, 6).reshape(n // TILE, -1, LANES, 32)
    strings = bitpack.pack(fields, width)
    parts = [strings[..., _WORD * first : _WORD * (first + count)] for first, count in parts_of(width)]
    blocks = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)
    return blocks.reshape(n // TILE, -1)


def unpack(packed: UInt8[Array, "tiles packed"], width: int, pairs: int) -> Int[Array, "n pairs"]:
    """The codes that ``pack`` put there, as int32.

    Raises:
        ValueError: tiles of so many pairs have another size.
    """
    tiles, nbytes = packed.shape
    needed = tile_nbytes(pairs, width)
    if nbytes != needed:
        raise ValueError(f"a tile of {pairs} codes of {width} bits for each token has {needed} bytes, not {nbytes}")
    blocks = packed.reshape(tiles, pairs // PAIRS, -1)
    parts = [
        blocks[..., LANES * _WORD * first : LANES * _WORD * (first + count)].reshape(*blocks.shape[:2], LANES, -1)
        for first, count in parts_of(width)
    ]
    fields = bitpack.unpack(jnp.concatenate(parts, axis=-1), width, 32)
    fields = fields.reshape(tiles, pairs // PAIRS, PAIRS // 2, 4, 4, 2, 2, 2)
    return fields.transpose(0, 3, 4, 6, 5, 1, 7, 2).reshape(tiles * TILE, pairs)

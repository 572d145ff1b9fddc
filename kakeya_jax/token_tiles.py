"""The order in which codes of values are packed: tile after tile of 64 tokens, and in each channel after channel.

A kernel's warp takes a tile at once, and reads it as one run of bytes; a channel's tokens lie side by side, because
they are the depth of the product with softmax weights. Blocks of other numbers of tokens are one tile.
"""

import jax.numpy as jnp

from kakeya_jax.typing import Array

TILE = 64
"""Tokens of a tile."""


def to_rows(vectors: Array) -> Array:
    """Of ``[n, d]`` the rows that are packed, ``[n / tile * d, tile]``: channel ``c`` of tile ``t`` is ``t d + c``."""
    n, d = vectors.shape
    tile = row_tokens(n)
    return jnp.swapaxes(vectors.reshape(n // tile, tile, d), 1, 2).reshape(-1, tile)


def from_rows(rows: Array, n: int) -> Array:
    """What ``to_rows`` was given, ``[n, d]``."""
    tile = row_tokens(n)
    return jnp.swapaxes(rows.reshape(n // tile, -1, tile), 1, 2).reshape(n, -1)


def row_tokens(n: int) -> int:
    """Tokens of a row of a block of ``n``."""
    return n if n % TILE else TILE

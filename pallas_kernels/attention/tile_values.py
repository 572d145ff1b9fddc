"""Values of a tile that are packed along tokens and have a scale for each token."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import CodedShape
from kakeya_jax.pallas_kernels.attention.coded_tiles import Tiles
from kakeya_jax.pallas_kernels.attention.held_words import Held
from kakeya_jax.pallas_kernels.attention.tile_shares import Shares, add_values, shares_of
from kakeya_jax.pallas_kernels.attention.warp_lane import halves_of


def token_shares(ops: Any, shape: CodedShape, state: list[Any], logits: list[list[Any]], words: list[Any]) -> Shares:
    """See ``shares_of``; ``words`` are packed float16, for each product the scales of its two rows."""
    return shares_of(
        ops, shape, state, logits, lambda: ops.largest_half(words), lambda product: halves_of(ops, words[product])
    )


def add_block(
    ops: Any, shape: CodedShape, held: Held, tiles: Tiles, slot: Any, block: int, shares: Shares
) -> list[Any]:
    """The values of 16 channels so far, and those of a tile times its shares."""
    table = held.tables[shape.value]
    near, far = (decode_unit(ops, unit, shape.value, table) for unit in tiles.value_units(slot, block))
    size = 2 * shape.blocks
    return add_values(ops, shares, near, far, shares.weighted[size * block : size * (block + 1)], held.magic)

"""Which columns of a product the two parts of a query are, and what a lane's sums of them come to.

A lane has columns ``2 t`` and ``2 t + 1`` of a block of eight, rows ``g`` and ``g + 8``: four sums. High and low parts
of a query are neighbours, so a lane has both: of query ``t`` of each four, a block of columns. Floats of more than four
queries are different: sums of high and of low parts, which are a block each, can be the same ones, so that neighbours
are query ``t`` and query ``t + 4``. Whatever they are, of a product a lane has numbers of two rows and, faster, of
``shape.blocks`` queries, ``t`` and ``t + 4``.
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, TileShape
from kakeya_jax.pallas_kernels.attention.query_form import QueryForm
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC


def byte_column(ops: Any, query: Any) -> Any:
    """Of a query's high bytes, in all blocks; its low ones are the next."""
    return ops.times(query, 2)


def float_column(ops: Any, shape: TileShape, query: Any) -> tuple[Any, int]:
    """Of a query's high part, in all blocks, and how many columns further its low part is."""
    if shape.blocks == 1:
        return ops.times(query, 2), 1
    return ops.add(ops.times(ops.modulo(query, FOUR), 2), ops.divide(query, FOUR)), COLUMNS


def query_of_column(ops: Any, shape: TileShape, column: Any) -> Any:
    """Whose high or low part a column of a block is, of floats."""
    query = ops.divide(column, 2)
    return query if shape.blocks == 1 else ops.add(query, ops.times(ops.modulo(column, 2), FOUR))


def float_blocks(shape: TileShape, form: QueryForm) -> int:
    """Blocks that are multiplied with: none of nothing but low parts, if there are no such."""
    return shape.blocks if form.low_parts else 1


def byte_numbers(ops: Any, sums: list[list[Any]]) -> list[Any]:
    """``256 high + low``, from the sums of every block, as the bits of ``MAGIC`` and the sum."""
    found = []
    for half in range(2):
        for four in sums:
            high, low = map(ops.as_real, four[2 * half : 2 * half + 2])
            found.append(ops.plus(ops.fused(high, ops.real(256.0), ops.real(-257.0 * MAGIC)), low))
    return found


def float_numbers(ops: Any, shape: TileShape, sums: list[Any]) -> list[Any]:
    """The sums of both parts of queries, of blocks of columns one after the other."""
    if shape.blocks > 1:
        return sums
    return [ops.plus(*sums[2 * half : 2 * half + 2]) for half in range(2)]

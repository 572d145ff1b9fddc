"""A head's queries as its program multiplies with them: found by the program itself, while its first tiles are on
their way.

Each warp has a share of the coordinates of all queries; numbers are relative to the largest of each query, which warps
tell each other in shared memory, as they do the numbers' parts. Both stand where the last stage of each warp is, which
no copy goes to before a warp is at its first tile.
"""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST, TileShape
from kakeya_jax.pallas_kernels.attention.exact_values import packed_in_two
from kakeya_jax.pallas_kernels.attention.query_columns import byte_column, float_blocks, float_column
from kakeya_jax.pallas_kernels.attention.query_coordinates import (
    SMALLEST,
    ChannelQueries,
    HadamardQueries,
    RotatedQueries,
    over_columns,
)
from kakeya_jax.pallas_kernels.attention.query_form import FACTORS, ROWS, TOPS, QueryForm
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, Lane, signed_bytes

_LARGEST = LARGEST * (1 - 2.0**-20)
"""What a query's largest number becomes, approximately: the reciprocal of it may be a little too large."""

_EXPONENT = 0x7F800000
"""Its bits of a float: those of a power of two, and"""

_INVERSES = 0x7F000000
"""the sum of the bits of one and those of its inverse."""

_LEAST = 0x00800000
"""Bits of the smallest normal one."""


class HeadQueries:
    """The queries of one head. Making it starts loads that wait for nothing.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        form: of the queries.
        lane: who this thread is.
        head: whose.
        query_ref: ``[N, group, D]``.
        rotation_ref: float32 ``[D, D]``, applied to column vectors; read if ``form.rotated``.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """

    def __init__(
        self,
        ops: Any,
        shape: TileShape,
        form: QueryForm,
        lane: Lane,
        head: Any,
        query_ref: Any,
        rotation_ref: Any,
        shared_ref: Any,
    ) -> None:
        assert ROWS + 2 * shape.rows * shape.dim * form.nbytes <= shape.stage_nbytes, "a stage has no room for queries"
        assert 4 * COLUMNS * shape.warps <= FACTORS - TOPS, "no room for what so many warps find"
        self.ops, self.shape, self.form, self.lane = ops, shape, form, lane
        self._stored = 2 if float_blocks(shape, form) == shape.blocks else 1
        last = ops.integer((shape.stages - 1) * shape.stage_nbytes)
        self._stages = ops.shared_offset(ops.shared_address(shared_ref), last)
        query = ops.offset(ops.address(query_ref), head, shape.group * shape.dim * form.dtype.itemsize)
        if form.coordinates == "rotated":
            self._source = RotatedQueries(ops, shape, form, lane, query, ops.address(rotation_ref))
        elif form.coordinates == "hadamard":
            self._source = HadamardQueries(ops, shape, form, lane, query, ops.address(rotation_ref))
        else:
            self._source = ChannelQueries(ops, shape, form, lane, query)

    def prepare(self) -> None:
        """What is to be done before copies of tiles are begun."""
        self._source.prepare()
        self.ops.begin_loads()

    def share(self) -> Any:
        """Puts all of them where each warp reads them; returns the address, of shared memory, for this warp.

        There they are until it is at its first tile: see ``query_form``.
        """
        ops, shape, lane = self.ops, self.shape, self.lane
        fours, unit = self._source.found()
        largest = over_columns(ops, functools.reduce(ops.maximum, [ops.magnitude(x) for four in fours for x in four]))
        tops = ops.shared_offset(self._stages, ops.times(lane.row, 4 * shape.warps))
        mine = ops.shared_offset(self._stages, ops.times(lane.warp, shape.warp_nbytes))
        first_column = ops.equal(lane.column, 0)
        of_warp = ops.shared_offset(tops, ops.times(lane.warp, 4))
        ops.only_if(first_column, lambda: ops.shared_store(of_warp, [largest], TOPS))
        ops.barrier()
        parts = [x for first in range(0, shape.warps, 4) for x in ops.shared_load(tops, 4, TOPS + 4 * first)]
        top = ops.maximum(functools.reduce(ops.maximum, parts), ops.real(SMALLEST))
        scale, factor = self._scale_to(top)
        factor = ops.scaled(ops.scaled(factor, unit), ops.real(self.form.scale))
        of_row = ops.shared_offset(mine, ops.times(lane.row, 4))
        ops.only_if(first_column, lambda: ops.shared_store(of_row, [factor], FACTORS))
        words = [self._parts(four, scale) for four in fours]
        ops.only_if(ops.less(lane.row, ops.integer(shape.rows)), lambda: self._store(words))
        ops.barrier()
        return mine

    def _scale_to(self, top: Any) -> tuple[Any, Any]:
        """What entries are multiplied by whose largest is ``top``, and one over that."""
        ops = self.ops
        if not self.form.low_parts:  # a power of two, so that nothing is rounded
            power = ops.both(ops.as_integer(top), ops.integer(_EXPONENT))
            inverse = ops.larger(ops.subtract(ops.integer(_INVERSES), power), ops.integer(_LEAST))
            return ops.as_real(inverse), ops.as_real(ops.subtract(ops.integer(_INVERSES), inverse))
        number = _LARGEST if self.form.parts is None else 1.0
        return ops.scaled(ops.reciprocal(top), ops.real(number)), ops.scaled(top, ops.real(1 / number))

    def _parts(self, four: list[Any], scale: Any) -> list[list[Any]]:
        """Words of high parts of four numbers, and of low parts if they are read."""
        ops, parts = self.ops, self.form.parts
        if parts is None:
            return [[word] for word in signed_bytes(ops, [ops.fused(x, scale, ops.real(MAGIC + 128.0)) for x in four])]
        return list(packed_in_two(ops, [ops.scaled(x, scale) for x in four], parts))[: self._stored]

    def _store(self, words: list[list[list[Any]]]) -> None:
        """For every warp."""
        ops, shape, lane, size = self.ops, self.shape, self.lane, self.form.nbytes
        if self.form.parts is None:
            column, to_low = byte_column(ops, lane.row), 1
        else:
            column, to_low = float_column(ops, shape, lane.row)
        place = ops.add(ops.times(column, shape.dim), ops.times(lane.warp, shape.dim // shape.warps))
        place = ops.times(ops.add(place, ops.times(lane.column, 4)), size)
        where = ops.shared_offset(self._stages, place)
        for warp in range(shape.warps):
            for index, of_four in enumerate(words):
                for low, part in enumerate(of_four):
                    at = ROWS + warp * shape.warp_nbytes + size * (16 * index + low * to_low * shape.dim)
                    ops.shared_store(where, list(map(ops.as_real, part)), at)

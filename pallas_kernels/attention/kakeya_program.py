"""One warp's decode attention over ``kakeya`` keys, coded before their rotary embedding, and packed values.

A program walks through blocks of tokens that share a skeleton; its four warps share the block's basis, in shared
memory and in the coordinates of the codes (``kakeya_skeleton``), and each takes every fourth tile of the block. A key
is

    mean + norm / L * basis^T codes + projection * centre

and is made on tensor cores from codes as float16, sixteen channels of a tile at a time: eight and their partners in
the rotary embedding. There it is turned, by its place in the tile alone: queries are turned back to where the tile
begins. What comes out, as float16, is already the left operand of the product with the queries.

Values, shares and states are those of ``coded_program``, and so is which token is which row.
"""

from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, PRODUCTS
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords, lane_zero
from kakeya_jax.pallas_kernels.attention.kakeya_halves import WORDS, decode_halves
from kakeya_jax.pallas_kernels.attention.kakeya_shape import DIM, STEPS, KakeyaShape
from kakeya_jax.pallas_kernels.attention.kakeya_skeleton import Skeletons
from kakeya_jax.pallas_kernels.attention.kakeya_tiles import KakeyaTiles
from kakeya_jax.pallas_kernels.attention.query_columns import query_of_column
from kakeya_jax.pallas_kernels.attention.tile_shares import empty_state
from kakeya_jax.pallas_kernels.attention.tile_values import add_block, token_shares
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, halves_of
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def kakeya_program(
    ops: Any,
    shape: KakeyaShape,
    head: Any,
    split: Any,
    tokens_of: Callable[[Any], Any],
    constant_ref: Any,
    level_ref: Any,
    sign_ref: Any,
    angle_ref: Any,
    turn_ref: Any,
    query_ref: Any,
    factor_ref: Any,
    basis_ref: Any,
    center_ref: Any,
    mean_ref: Any,
    key_ref: Any,
    norm_ref: Any,
    projection_ref: Any,
    segment_ref: Any,
    value_ref: Any,
    value_scale_ref: Any,
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    shared_ref: Any,
) -> None:
    """Attends to the coded tokens of one head's share, and writes its softmax state.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        head: whose tokens.
        split: which of the programs that share them.
        tokens_of: a head's coded tokens, whole blocks, by its number.
        constant_ref: int32, ``HeldWords((shape.value,)).words``.
        level_ref: int32, ``kakeya_halves.level_words`` of the keys' levels.
        sign_ref: int32 ``[L / 2]``, the highest bits of two signs in each half.
        angle_ref: int32, ``kakeya_turns.token_angles``.
        turn_ref: float32 ``[tiles, D]``, ``kakeya_turns.tile_angles``.
        query_ref: float32 ``[N, rows, D]``, at most 1 in size, by ``kakeya_turns.by_step``.
        factor_ref: float32 ``[N, 8]``: of products, for logits to the base 2.
        basis_ref: float16 ``[M, blocks, L, D]``, ``M = N / mixed``.
        center_ref: float16 ``[M, blocks, 16, L]``.
        mean_ref: float16 ``[M, blocks, D]``.
        key_ref: uint8 ``[M, T, mixed, L b / 8]``.
        norm_ref: float16 ``[M, T, mixed]``.
        projection_ref: float16 ``[M, T, mixed]``.
        segment_ref: uint8 ``[M, T mixed / 2]``.
        value_ref: uint8 ``[N, T / 64, D, 8 b]``.
        value_scale_ref: float16 ``[N, T]``, not negative.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: see ``coded_program``.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = Lane(ops)
    blocks = ops.divide(tokens_of(head), shape.block)
    first = ops.divide(ops.product(split, blocks), shape.splits)
    stop = ops.divide(ops.product(ops.add(split, ops.integer(1)), blocks), shape.splits)
    shared = ops.shared_address(shared_ref)
    _load_angles(ops, shape, lane, angle_ref, shared)
    refs = (key_ref, norm_ref, projection_ref, segment_ref, value_ref, value_scale_ref, turn_ref)
    tiles = KakeyaTiles(ops, shape, lane, head, refs, shared_ref)
    skeletons = Skeletons(ops, shape, lane, sign_ref, (basis_ref, center_ref, mean_ref))
    keys = _Keys(ops, shape, lane, tiles, shared, (level_ref, query_ref, factor_ref), head)
    held = HeldWords((shape.value,)).load(ops, lane, ops.address(constant_ref))
    slot = ops.shared_offset(shared, ops.add(ops.times(lane.warp, shape.stage_nbytes), ops.integer(shape.tiles_at)))

    def start(tile: Any, exists: Any, copies: Callable[[Any, Any], None]) -> None:
        """Starts copies of a tile, if there is one; what was there is read."""
        ops.wait_for_copies(1)
        ops.only_if(exists, lambda: copies(tile, slot))
        ops.commit_copies()

    of_head = ops.times(ops.divide(head, shape.mixed), shape.capacity // shape.block)

    def in_block(block: Any, state: list[Any]) -> list[Any]:
        ops.barrier()
        skeletons.load(ops.add(of_head, block), shared)
        ops.barrier()
        after = ops.add(block, ops.integer(1))
        ops.only_if(ops.less(after, stop), lambda: skeletons.prefetch(ops.add(of_head, after)))
        begin = ops.times(block, shape.tiles)

        def step(inside: Any, state: list[Any]) -> list[Any]:
            after = ops.add(inside, ops.integer(shape.warps))
            stays = ops.less(after, ops.integer(shape.tiles))
            following = ops.add(begin, ops.select(stays, after, ops.add(lane.warp, ops.integer(shape.tiles))))
            exists = ops.less(following, ops.times(stop, shape.tiles))
            ops.wait_for_copies(1)
            logits = keys.logits(slot, lambda: start(following, exists, tiles.start_keys))
            ops.wait_for_copies(1)
            state = _add_values(ops, shape, tiles, held, slot, state, logits)
            start(following, exists, tiles.start_values)
            return state

        return ops.loop(lane.warp, ops.integer(shape.tiles), state, step, shape.warps)

    tile = ops.add(ops.times(first, shape.tiles), lane.warp)
    some = ops.less(ops.select(ops.less(lane.warp, ops.integer(shape.tiles)), first, stop), stop)
    for copies in (tiles.start_keys, tiles.start_values):
        start(tile, some, copies)
    state = ops.loop(first, stop, empty_state(ops, shape), in_block)
    ops.wait_for_copies(0)
    ops.mark("tiles")
    ops.barrier()  # tiles and skeletons become states
    place = ops.add(ops.times(head, shape.states), split)
    halves = [ops.real(0.5)] * (shape.blocks * shape.dim // 8) if shape.value.halfway else None
    write_state(ops, shape, lane, place, state, halves, top_ref, total_ref, weighted_ref, shared_ref)


def _load_angles(ops: Any, shape: KakeyaShape, lane: Lane, ref: Any, shared: Any) -> None:
    where = ops.times(lane.thread, 16)
    source, target = ops.offset(ops.address(ref), where), ops.shared_offset(shared, where)
    threads = 16 * 32 * shape.warps
    for first in range(0, shape.queries_at - shape.angles_at, threads):
        ops.copy(target, source, 16, shape.angles_at + first, first)
    ops.commit_copies()
    ops.wait_for_copies(0)  # a barrier follows


class _Keys:
    """Logits of a tile's keys."""

    def __init__(
        self, ops: Any, shape: KakeyaShape, lane: Lane, tiles: KakeyaTiles, shared: Any, refs: Any, head: Any
    ) -> None:
        self.ops, self.shape, self.lane, self.tiles = ops, shape, lane, tiles
        level_ref, query_ref, factor_ref = refs
        levels = ops.offset(ops.address(level_ref), lane_zero(ops, lane))
        self.levels = [ops.load_words(levels, 1, 4 * index, once=False)[0] for index in range(WORDS)]
        query = query_of_column(ops, shape, lane.row)  # with one part: if a query has two columns, they are equal
        place = ops.add(ops.times(query, 4 * DIM), ops.times(lane.column, 16))
        self.query = ops.offset(ops.offset(ops.address(query_ref), head, 4 * shape.rows * DIM), place)
        self.factors = _load_factors(ops, shape, lane, factor_ref, head)
        wide = ops.shared_offset(shared, ops.times(lane.lane, 16))
        narrow = ops.shared_offset(shared, ops.times(lane.lane, 8))
        self.basis = self.angles = wide
        self.centers = narrow
        self.means = ops.shared_offset(shared, ops.times(lane.column, 8))
        self.queries = ops.shared_offset(narrow, ops.times(lane.warp, 256 * STEPS))

    def logits(self, slot: Any, start_next: Callable[[], None]) -> list[list[Any]]:
        """To the base 2, as ``coded_program.logits_of``, for all products; ``start_next`` is called once keys are
        read."""
        ops, shape, tiles = self.ops, self.shape, self.tiles
        self._turn_queries(slot)
        sums: list[Any] = []
        for first in range(0, PRODUCTS, shape.together):
            parts = []
            for product in range(first, first + shape.together):
                norms, shares = tiles.lengths(slot, product)
                left = self._codes(slot, product)
                parts.append(([*left, tiles.centers(slot, product, shares)] if shape.centers else left, norms))
            if first + shape.together == PRODUCTS:
                start_next()
            sums += self._products(first, parts)
        mine = slice(None, None, 2 // shape.blocks)
        return [
            list(map(ops.scaled, sums[4 * product : 4 * product + 4][mine], self.factors * 2))
            for product in range(PRODUCTS)
        ]

    def _turn_queries(self, slot: Any) -> None:
        """Right operands for each step: queries turned back by the angles of the tile's first position."""
        ops, shape = self.ops, self.shape
        where = ops.shared_offset(slot, ops.times(self.lane.column, 16))
        for step in range(STEPS):
            turn = ops.shared_load(where, 4, shape.stage_turn + 64 * step)
            query = ops.load_reals(self.query, 4, 64 * step)
            near, far = [], []
            for n in range(2):
                cos, sin, one, other = turn[n], turn[2 + n], query[n], query[2 + n]
                near.append(ops.fused(one, cos, ops.scaled(other, sin)))
                far.append(ops.minus(ops.scaled(other, cos), ops.scaled(one, sin)))
            words = [ops.as_real(ops.pack_halves(*pair)) for pair in (near, far)]
            ops.shared_store(self.queries, words, shape.queries_at + 256 * step)

    def _codes(self, slot: Any, product: int) -> list[list[Any]]:
        """Left operands of a product's two rows, a quad of codes each."""
        bits = self.shape.key.bits
        low, high = (
            [pair for unit in units for pair in decode_halves(self.ops, unit, bits, self.levels)]
            for units in self.tiles.key_units(slot, product)
        )
        return [[near[0], far[0], near[1], far[1]] for near, far in zip(low, high, strict=True)]

    def _products(self, first: int, parts: list[tuple[list[list[Any]], list[Any]]]) -> list[Any]:
        """Sums of products with queries, from the ``first`` of the tile on: of left operands and norms of keys."""
        ops, shape = self.ops, self.shape

        def one_step(step: Any, sums: list[Any]) -> list[Any]:
            basis = ops.shared_offset(self.basis, ops.times(step, shape.step_nbytes))
            by_half = []
            for half in range(2):
                words = []
                for at in range(0, shape.step_nbytes, 512):
                    words += ops.shared_words(basis, 4, STEPS * shape.step_nbytes * half + at)
                by_half.append([words[n : n + 2] for n in range(0, len(words), 2)])
            if shape.centers:
                where = ops.shared_offset(self.centers, ops.times(step, 256))
                for half, right in enumerate(by_half):
                    right.append(ops.shared_words(where, 2, shape.centers_at + 256 * STEPS * half))
            mean_words = ops.shared_words(ops.shared_offset(self.means, ops.times(step, 32)), 2, shape.mean_at)
            means = [halves_of(ops, word) for word in mean_words]
            query = ops.shared_words(ops.shared_offset(self.queries, ops.times(step, 256)), 2, shape.queries_at)
            angles = ops.shared_offset(self.angles, ops.times(step, 512 * PRODUCTS))
            totals = [[[ops.real(0.0)] * 4 for _ in range(2)] for _ in parts]
            for depth in range(len(by_half[0])):  # chains of products side by side: one waits for the one before it
                for half, right in enumerate(by_half):
                    for total, (left, _) in zip(totals, parts, strict=True):
                        total[half] = ops.multiply_halves(total[half], left[depth], right[depth])
            found = []
            for index, (total, (_, norms)) in enumerate(zip(totals, parts, strict=True)):
                turn = ops.shared_words(angles, 4, shape.angles_at + 512 * (first + index))
                halves = []
                for each, mean in zip(total, means, strict=True):
                    made = [ops.fused(value, norms[n // 2], mean[n % 2]) for n, value in enumerate(each)]
                    halves.append([ops.pack_halves(*made[:2]), ops.pack_halves(*made[2:])])
                near, far = _turned(ops, halves, turn)
                found += ops.multiply_halves(sums[4 * index : 4 * index + 4], [*near, *far], query)
            return found

        def some_steps(index: Any, sums: list[Any]) -> list[Any]:
            for n in range(shape.unrolled):
                sums = one_step(ops.add(index, ops.integer(n)), sums)
            return sums

        zeros = [ops.real(0.0)] * (4 * len(parts))
        return ops.loop(ops.integer(0), ops.integer(STEPS), zeros, some_steps, shape.unrolled)


def _turned(ops: Any, halves: list[list[Any]], turn: list[Any]) -> tuple[list[Any], list[Any]]:
    """Both rows' channels and their partners, rotated by angles of these cosines and sines."""
    near, far = [], []
    for row, (one, other) in enumerate(zip(*halves, strict=True)):
        cos, sin = turn[2 * row : 2 * row + 2]
        near.append(ops.fused_halves(one, cos, ops.negative_halves(ops.scaled_halves(other, sin))))
        far.append(ops.fused_halves(other, cos, ops.scaled_halves(one, sin)))
    return near, far


def _add_values(
    ops: Any,
    shape: KakeyaShape,
    tiles: KakeyaTiles,
    held: Any,
    slot: Any,
    state: list[Any],
    logits: list[list[Any]],
) -> list[Any]:
    """The state with the tokens of a tile."""
    words = [each[0] for each in tiles.scale_words(slot, 1)]
    shares = token_shares(ops, shape, state, logits, words)
    weighted = []
    for block in range(shape.dim // 16):
        weighted += add_block(ops, shape, held, tiles, slot, block, shares)
    return [*shares.top, *shares.total, *shares.shift, *weighted]


def _load_factors(ops: Any, shape: KakeyaShape, lane: Lane, ref: Any, head: Any) -> list[Any]:
    """Of this lane's queries."""
    where = ops.offset(ops.address(ref), ops.add(ops.times(head, 4 * COLUMNS), ops.times(lane.column, 4)))
    return [ops.load_reals(where, 1, 4 * FOUR * block)[0] for block in range(shape.blocks)]

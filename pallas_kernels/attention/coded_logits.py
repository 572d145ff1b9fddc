"""Logits alone, over packed keys: what a fused kernel of them is worth beside a dense product. No attention uses it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, PRODUCTS, TILE, CodedShape, Codes
from kakeya_jax.pallas_kernels.attention.coded_tiles import StreamRefs, Tiles
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.launch import launch
from kakeya_jax.pallas_kernels.attention.query_form import QueryForm
from kakeya_jax.pallas_kernels.attention.tile_logits import key_product, load_queries, logits_of
from kakeya_jax.pallas_kernels.attention.tile_loop import Step, over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane
from kakeya_jax.typing import Array, Float, UInt8

_WARPS = 4


def coded_logits(
    query: Float[Array, "N G D"],
    key_codes: UInt8[Array, "N T kw"],
    key_scales: Float[Array, "N T"],
    *,
    rotation: Float[Array, "D D"] | None = None,
    key: Codes,
    key_unit: float,
    scale: float,
    splits: int,
    interpret: bool = False,
) -> Float[Array, "N G T"]:
    """``scale`` times the products of each head's queries and keys, float32.

    Args:
        query: at most 8 for a head; in the coordinates of the keys' codes, if there is no
        rotation: float32, applied to column vectors, into those.
        key_codes: packed along channels (``code_words``), ``T`` a multiple of 64, and
        key_scales: float16, what their levels are multiplied by.
        key: how they are packed.
        key_unit: of their levels.
        scale: factor of the logits.
        splits: programs that share the tokens of one head.
        interpret: run the program in numpy, on any machine.
    """
    heads, group, dim = query.shape
    tokens = key_codes.shape[1]
    if group > COLUMNS or tokens % TILE:
        raise NotImplementedError(f"no kernel for logits of {group} queries and {tokens} tokens; 8, and whole {TILE}")
    shape = CodedShape(
        dim=dim,
        key=key,
        value=key,
        capacity=tokens,
        group=group,
        splits=splits,
        states=splits,
        warps=_WARPS,
        queries=QueryForm(
            dtype=query.dtype,
            scale=scale * key_unit,  # to the base e
            coordinates="channels" if rotation is None else "rotated",
        ),
    )
    (out,) = launch(
        functools.partial(_program, shape=shape),
        [jax.ShapeDtypeStruct((heads, group, tokens), jnp.float32)],
        [
            jnp.asarray(HeldWords(shape.codes).words),
            query,
            query if rotation is None else rotation,
            key_codes,
            key_scales,
        ],
        programs=heads * splits,
        warps=_WARPS,
        shared_floats=shape.shared_floats,
        interpret=interpret,
    )
    return out


def _program(ops: Any, *refs: Any, shape: CodedShape) -> None:
    constant_ref, query_ref, rotation_ref, key_ref, key_scale_ref, out_ref, shared_ref = refs
    lane, number = Lane(ops), ops.program_index()
    head, split = ops.divide(number, shape.splits), ops.modulo(number, shape.splits)
    queries = HeadQueries(ops, shape, shape.queries, lane, head, query_ref, rotation_ref, shared_ref)
    share = share_of(ops, shape, lane, split, ops.integer(shape.capacity // TILE))
    held = HeldWords(shape.codes).load(ops, lane, ops.address(constant_ref))
    refs = StreamRefs(key_ref, key_scale_ref, key_scale_ref)
    tiles = Tiles(ops, shape, lane, head, (refs, refs), shared_ref)

    # Where a lane's first query has its first token.
    out = ops.offset(ops.address(out_ref), ops.times(head, shape.group), 4 * shape.capacity)
    out = ops.offset(out, ops.add(ops.times(lane.column, 4 * shape.capacity), ops.times(tiles.token, 4)))
    writes = [ops.less(lane.column, ops.integer(shape.group - FOUR * n)) for n in range(shape.blocks)]

    def step(loaded: Any, tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        query, starts, factors = loaded
        scales = tiles.scale_words(slot, 0)
        where = ops.offset(out, tile, 4 * TILE)
        for product in range(PRODUCTS):
            sums = key_product(ops, shape, held, tiles.key_units(slot, product), query, starts)
            logits = logits_of(ops, sums, scales[product][0], factors)
            for n, here in enumerate(writes):
                pair, at = logits[n :: shape.blocks], 4 * (4 * product + FOUR * n * shape.capacity)
                ops.only_if(here, lambda pair=pair, at=at: ops.store_reals(where, pair, at))
        return state

    def begin() -> tuple[Step, list[Any]]:
        return functools.partial(step, load_queries(ops, shape, lane, queries.share())), []

    queries.prepare()
    over_tiles(ops, shape, lane, shared_ref, share, tiles.start_keys, begin)

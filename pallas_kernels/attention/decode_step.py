"""One decode step of attention over packed codes and exact tokens, in two launches: queries, and all the rest."""

import dataclasses

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.byte_queries import LN2
from kakeya_jax.pallas_kernels.attention.coded_program import coded_program
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, CodedShape, Codes
from kakeya_jax.pallas_kernels.attention.finish_program import FinishShape
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.launch import launch
from kakeya_jax.pallas_kernels.attention.query_program import QueryShape, query_program
from kakeya_jax.pallas_kernels.attention.step_parts import attend_parts
from kakeya_jax.pallas_kernels.attention.window_program import WARPS, WindowShape, exact_programs
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, Float, Int, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedStream:
    """Codes of all heads of a stream, as programs read them.

    Attributes:
        words: uint8, keys ``[N, T, D b / 8]``, values ``[N, T / page, D, page b / 8]``.
        scales: float16 ``[N, T, codes.scales]``.
        sinks: exact ``[N, sinks, D]``.
        tail: exact ``[N, tail, D]``, a ring.
        rotation: float32 ``[D, D]``: what is coded is this times a vector.
        codes: how ``words`` are packed.
        unit: of their levels.
    """

    words: UInt8[Array, "..."]
    scales: Float[Array, "N T scales"]
    sinks: Float[Array, "N sinks D"]
    tail: Float[Array, "N tail D"]
    rotation: Float[Array, "D D"]
    codes: Codes
    unit: float


def decode_step(
    query: Float[Array, "N G D"],
    key: CodedStream,
    value: CodedStream,
    positions: Int[Array, " B"],
    *,
    geometry: Geometry,
    scale: float,
    splits: int,
    interpret: bool = False,
) -> Float[Array, "N G D"]:
    """Attention of the newest token's queries, ``N = B K`` key/value heads with ``G <= 8`` queries each.

    Args:
        query: after their rotary embedding.
        key: keys, the queries' own token in them.
        value: values, likewise.
        positions: of the queries.
        geometry: of both streams.
        scale: factor of the logits.
        splits: programs that share the coded tokens of a head.
        interpret: in numpy, on any machine.
    """
    heads, group, dim = query.shape
    base_two = scale / LN2

    asked = QueryShape(dim=dim, group=group, dtype=query.dtype, scale=base_two * key.unit)
    *numbers, counters = launch(
        lambda ops, *refs: query_program(ops, asked, *refs),
        [
            jax.ShapeDtypeStruct((heads, 2 * asked.rows, dim), jnp.int8),
            jax.ShapeDtypeStruct((heads, 2 * asked.rows), jnp.int32),
            jax.ShapeDtypeStruct((heads, COLUMNS), jnp.float32),
            jax.ShapeDtypeStruct((heads,), jnp.int32),
        ],
        [query, key.rotation],
        programs=heads,
        warps=asked.warps,
        shared_floats=asked.shared_floats,
        interpret=interpret,
    )

    rows = asked.rows
    exact_splits = exact_programs(geometry)
    states = splits + exact_splits
    coded = CodedShape(
        dim=dim,
        key=key.codes,
        value=value.codes,
        page=geometry.num_pages * geometry.page // value.words.shape[1],
        capacity=geometry.num_pages * geometry.page,
        group=group,
        splits=splits,
        states=states,
        warps=WARPS,
    )
    window = WindowShape(
        dim=dim,
        group=group,
        rows=rows,
        num_kv_heads=heads // len(positions),
        geometry=geometry,
        query_dtype=query.dtype,
        dtype=key.tail.dtype,
        value_dtype=value.tail.dtype,
        scale=base_two,
        states=states,
    )
    finish = FinishShape(
        dim=dim, group=group, rows=rows, coded=splits, exact=exact_splits, dtype=query.dtype, unit=value.unit
    )
    return attend_parts(
        coded_program,
        coded,
        window,
        finish,
        [jnp.asarray(HeldWords(coded.codes).words), *numbers, key.words, key.scales, value.words, value.scales],
        query,
        positions,
        [key.sinks, key.tail, value.sinks, value.tail],
        [value.rotation],
        counters,
        interpret=interpret,
    )

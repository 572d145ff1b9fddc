"""Decode attention over packed codes with a level table and a scale for each token: launches ``coded_program``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_program import coded_program
from kakeya_jax.pallas_kernels.attention.coded_shape import CodedShape, Codes
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.launch import launch
from kakeya_jax.pallas_kernels.attention.query_form import QueryForm
from kakeya_jax.pallas_kernels.attention.softmax_state import LN2, SoftmaxState
from kakeya_jax.typing import Array, Float, Int, UInt8

WARPGROUPS = 1
"""Groups of four warps in a program: three programs share a multiprocessor, so that one works while another begins or
ends."""


def attend_coded(
    query: Float[Array, "N G D"],
    key_codes: UInt8[Array, "N T kw"],
    key_scales: Float[Array, "N T"],
    value_codes: UInt8[Array, "N pages D vw"],
    value_scales: Float[Array, "N T"],
    lengths: Int[Array, " N"],
    *,
    key: Codes,
    value: Codes,
    key_unit: float,
    value_unit: float,
    scale: float,
    splits: int,
    warpgroups: int = WARPGROUPS,
    interpret: bool = False,
) -> SoftmaxState:
    """The softmax over the first ``lengths[n]`` tokens of each head, values in the coordinates of their codes.

    Args:
        query: in the coordinates of the keys' codes; at most 8 for a head.
        key_codes: packed along channels (``code_words``), and
        key_scales: float16, what their levels are multiplied by.
        value_codes: packed along tokens, tile after tile (``token_tiles``), and
        value_scales: likewise, not negative.
        lengths: int32, multiples of 64.
        key: how keys are packed.
        value: how values are.
        key_unit: of the levels of keys, and
        value_unit: of values.
        scale: factor of the logits.
        splits: programs that share the tokens of one head.
        warpgroups: of a program.
        interpret: run the program in numpy, on any machine.

    Returns:
        State of shape ``[splits, N, G]``.
    """
    heads, group, dim = query.shape
    tokens = key_codes.shape[1]
    shape = CodedShape(
        dim=dim,
        key=key,
        value=value,
        capacity=tokens,
        group=group,
        splits=splits,
        states=splits,
        warps=4 * warpgroups,
        queries=QueryForm(scale=scale * key_unit / LN2),
    )
    queries = [query.astype(jnp.float32)] * 2  # no rotation
    outputs = (
        jax.ShapeDtypeStruct((heads, splits, shape.rows), jnp.float32),
        jax.ShapeDtypeStruct((heads, splits, shape.rows), jnp.float32),
        jax.ShapeDtypeStruct((heads, splits, shape.rows, dim), jnp.float32),
    )
    codes = (key_codes, key_scales, key_scales, value_codes, value_scales, value_scales)  # no minima
    arguments = (jnp.asarray(HeldWords(shape.codes).words), *queries, *codes, lengths.astype(jnp.int32))
    top, total, weighted = launch(
        functools.partial(_program, shape=shape),
        outputs,
        arguments,
        programs=heads * splits,
        warps=shape.warps,
        shared_floats=shape.shared_floats,
        interpret=interpret,
    )

    def by_split(states: Array) -> Array:
        return jnp.swapaxes(states, 0, 1)[:, :, :group]

    return SoftmaxState(by_split(top) * LN2, by_split(total), by_split(weighted) * value_unit)


def _program(ops: Any, *refs: Any, shape: CodedShape) -> None:
    arrays, length_ref = [*refs[:9], *refs[10:]], refs[9]

    def tokens_of(head: Any) -> Any:
        return ops.load_words(ops.offset(ops.address(length_ref), ops.times(head, 4)), 1)[0]

    number = ops.program_index()
    coded_program(ops, shape, ops.divide(number, shape.splits), ops.modulo(number, shape.splits), tokens_of, *arrays)

"""Attention in parts: what a softmax over some of the tokens leaves, and how parts are put together.

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array, Bool, Float

LN2 = math.log(2.0)
"""Kernels take powers of two: their logits are natural ones over this."""

LOWEST = -1e30
"""Finite stand-in for minus infinity: a query that sees no token gets zeros instead of NaN."""


class Attended(NamedTuple):
    """What attention found.

    Attributes:
        out: ``[..., D]``, values summed with the softmax's weights.
        lse: float32 ``[...]``, the natural logarithm of the sum of ``exp(logit)`` over all tokens that a query sees;
            minus infinity if it sees none. With it, results over different tokens can be put together.
    """

    out: Array
    lse: Array


class SoftmaxState(NamedTuple):
    """For each query, over the tokens seen so far.

    Attributes:
        top: float32 ``[...]``, the largest logit, or ``LOWEST``.
        total: float32 ``[...]``, the sum of ``exp(logit - top)``.
        weighted: float32 ``[..., D]``, the values summed with these weights.
    """

    top: Array
    total: Array
    weighted: Array


def empty(lead: tuple[int, ...], dim: int) -> SoftmaxState:
    """The state of queries ``lead`` that have seen nothing."""
    return SoftmaxState(
        jnp.full(lead, LOWEST, jnp.float32), jnp.zeros(lead, jnp.float32), jnp.zeros((*lead, dim), jnp.float32)
    )


def attend(
    state: SoftmaxState,
    queries: Float[Array, "B K T G D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S D"],
    visible: Bool[Array, "B T S"],
    scale: float,
) -> SoftmaxState:
    """Adds a tile of keys and values, for queries of shape ``[B, K, T, G]``."""
    dtype = queries.dtype
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    logits = jnp.einsum(
        "bktgd,bksd->bktgs",
        queries,
        key.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    logits = jnp.where(visible[:, None, :, None, :], logits * scale, -jnp.inf)
    top = jnp.maximum(state.top, jnp.max(logits, axis=-1))
    weights = jnp.exp(logits - top[..., None])
    decay = jnp.exp(state.top - top)
    total = state.total * decay + jnp.sum(weights, axis=-1)
    added = jnp.einsum(
        "bktgs,bksd->bktgd",
        weights.astype(dtype),
        value.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return SoftmaxState(top, total, state.weighted * decay[..., None] + added)


def reduce(states: SoftmaxState, axis: int) -> SoftmaxState:
    """One state of many over different tokens, stacked along ``axis`` of ``top``."""
    top = jnp.max(states.top, axis=axis, keepdims=True)
    share = jnp.exp(states.top - top)
    return SoftmaxState(
        jnp.squeeze(top, axis),
        jnp.sum(states.total * share, axis=axis),
        jnp.sum(states.weighted * share[..., None], axis=axis),
    )


def combine(first: SoftmaxState, second: SoftmaxState) -> SoftmaxState:
    """The state over the tokens of both."""
    top = jnp.maximum(first.top, second.top)
    one, other = jnp.exp(first.top - top), jnp.exp(second.top - top)
    return SoftmaxState(
        top,
        first.total * one + second.total * other,
        first.weighted * one[..., None] + second.weighted * other[..., None],
    )


def log_sum(state: SoftmaxState) -> Float[Array, "..."]:
    """The natural logarithm of the sum of ``exp(logit)``; minus infinity for a query that saw nothing."""
    return state.top + jnp.log(state.total)


def log_sum_of_powers(top: Float[Array, "N S G"], total: Float[Array, "N S G"]) -> Float[Array, "N G"]:
    """The same of states over different tokens, whose logits are to the base 2."""
    largest = jnp.max(top, axis=1)
    return LN2 * (largest + jnp.log2(jnp.sum(total * jnp.exp2(top - largest[:, None]), axis=1)))


def output(state: SoftmaxState) -> Float[Array, "... D"]:
    """The weighted mean of the values; zeros for a query that saw nothing."""
    return state.weighted / jnp.maximum(state.total, jnp.finfo(jnp.float32).tiny)[..., None]

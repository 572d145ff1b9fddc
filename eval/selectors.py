"""Which tokens a decode step reads: rules that leave out work, as pure functions of arrays.

Each returns a mask over ``T`` cached tokens for ``n`` queries, broadcastable to ``[B, K, G, n, T]``; the caller takes
what is causal of it. Rules that look at the attention weights themselves are *oracles*: they show what a rule could
reach that knew them without computing them, not what a decoder could do.
"""

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array, Bool, Float, Int


def recent_sink(
    query_positions: Int[Array, "B n"], positions: Int[Array, "B T"], *, sinks: int, recent: int
) -> Bool[Array, "B 1 1 n T"]:
    """The first ``sinks`` tokens and the latest ``recent``, the query's own included."""
    behind = query_positions[:, :, None] - positions[:, None, :]
    kept = (behind >= 0) & ((behind < recent) | (positions[:, None, :] < sinks))
    return kept[:, None, None]


def global_block_mass(weights: Float[Array, "B K G n T"], *, chunk: int, keep: int) -> Bool[Array, "B 1 1 n T"]:
    """The ``keep`` chunks with the most attention summed over all heads of the layer; an oracle.

    Args:
        weights: attention weights; zero where not causal.
        chunk: tokens of a chunk; must divide ``T``.
        keep: chunks kept of each query, the same for all heads.
    """
    mass = chunk_sums(weights, chunk).sum(axis=(1, 2), keepdims=True)
    return chunks_to_tokens(top_chunks(mass, keep), chunk)


def chunk_means(
    query: Float[Array, "B K G n D"],
    key: Float[Array, "B K T D"],
    query_positions: Int[Array, "B n"],
    *,
    chunk: int,
    keep: int,
) -> Bool[Array, "B K 1 n T"]:
    """The ``keep`` chunks whose mean key has the largest product with any query of the group; no oracle.

    Chunks that are not complete before the query cannot be chosen: their mean would see the future. A decoder reads one
    vector for each chunk instead of ``chunk`` of them.
    """
    batch, heads, length, dim = key.shape
    means = key.reshape(batch, heads, length // chunk, chunk, dim).mean(axis=3)
    scores = jnp.einsum("bkgnd,bkcd->bkgnc", query, means).max(axis=2, keepdims=True)
    complete = (jnp.arange(length // chunk) + 1) * chunk <= query_positions[:, :, None]
    return chunks_to_tokens(top_chunks(jnp.where(complete[:, None, None], scores, -jnp.inf), keep), chunk)


def active_chunks(weights: Float[Array, "B K G n T"], *, chunk: int, share: float) -> Bool[Array, "B K 1 n T"]:
    """The fewest chunks that hold ``share`` of the attention of a key/value head's queries; an oracle.

    How many they are differs from query to query and head to head: the result, not a setting.
    """
    mass = chunk_sums(weights, chunk).sum(axis=2, keepdims=True)
    order = jnp.argsort(-mass, axis=-1)
    ordered = jnp.take_along_axis(mass, order, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    wanted = before < share * ordered.sum(axis=-1, keepdims=True)
    rank = jnp.argsort(order, axis=-1)
    return chunks_to_tokens(jnp.take_along_axis(wanted, rank, axis=-1), chunk)


def chunk_sums(weights: Float[Array, "*batch T"], chunk: int) -> Float[Array, "*batch chunks"]:
    """Sums over chunks of tokens."""
    return weights.reshape(*weights.shape[:-1], -1, chunk).sum(axis=-1)


def chunks_to_tokens(chosen: Bool[Array, "*batch chunks"], chunk: int) -> Bool[Array, "*batch T"]:
    """Every token of the chosen chunks."""
    return jnp.repeat(chosen, chunk, axis=-1)


def top_chunks(scores: Float[Array, "*batch chunks"], keep: int) -> Bool[Array, "*batch chunks"]:
    """The ``keep`` largest scores of each row, the first of equal ones; never one of ``-inf``."""
    keep = min(keep, scores.shape[-1])
    index = jax.lax.top_k(scores, keep)[1]
    chosen = jnp.any(jax.nn.one_hot(index, scores.shape[-1], dtype=bool), axis=-2)
    return chosen & (scores > -jnp.inf)

"""Spherical k-means with antipodal clusters: a centre stands for the line through it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax import smallrng
from kakeya_jax.numeric import EPS
from kakeya_jax.typing import Array, Float, Int

# Contractions with written indices sum in the same order however blocks are batched (see pca.py).
_contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def fit_centers(
    points: Float[Array, "n r"],
    k: int,
    *,
    iterations: int,
    seed: int,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, "k r"]:
    """Unit directions of at most ``k`` lines near which the points lie.

    Farthest-first start (by signed cosine, from a seeded first point), then Lloyd passes that assign by
    ``|cosine|`` and average with signs, until the assignment repeats. An empty cluster keeps its centre.

    Args:
        points: float32; points of norm at most ``2**-23`` or of zero weight are ignored.
        k: number of centres; with fewer usable points the remaining rows are zero and are never chosen.
        iterations: bound on the number of assignment passes.
        seed: of the first centre.
        weights: nonnegative; all one if None.
    """
    norm = row_norms(points)
    weights = jnp.ones_like(norm) if weights is None else weights
    valid = (norm > EPS) & (weights > 0)
    directions = jnp.where(valid[:, None], points / jnp.where(valid, norm, 1.0)[:, None], 0.0)
    start = _farthest_first(directions, valid, k, seed)
    lloyd = functools.partial(_lloyd, iterations=iterations)
    # Under vmap, all blocks would make as many passes as the slowest. On a CPU one block after the other is twice as
    # fast, since each stops when it has converged; a GPU is filled only by all of them together.
    return jax.lax.platform_dependent(
        directions,
        jnp.where(valid, weights, 0.0),
        start,
        cpu=jax.custom_batching.sequential_vmap(lloyd),
        default=lloyd,
    )


class Assignment(NamedTuple):
    """For each point its centre and its signed projection on it."""

    segment: Int[Array, " n"]
    projection: Float[Array, " n"]


def assign(points: Float[Array, "n r"], centers: Float[Array, "k r"]) -> Assignment:
    """The centre of largest ``|<point, centre>|``, first if equal, and that product; 0, 0 at zero norm."""
    products = _contract("kr,nr->kn", centers, points)
    best = _first_argmax(jnp.abs(products))
    chosen = jnp.sum(jnp.where(best == _rows(products), products, 0.0), axis=0)
    nonzero = jnp.square(row_norms(points)) > EPS
    return Assignment(segment=jnp.where(nonzero, best, 0), projection=jnp.where(nonzero, chosen, 0.0))


def row_norms(points: Float[Array, "n r"]) -> Float[Array, " n"]:
    """The Euclidean length of every row."""
    return jnp.sqrt(_contract("nr,r->n", points * points, jnp.ones(points.shape[1], jnp.float32)))


def _farthest_first(directions: Array, valid: Array, k: int, seed: int) -> Array:
    """``k`` rows of ``directions``, each the one least similar to those before it."""
    count = jnp.sum(valid, dtype=jnp.int32)
    table = jnp.asarray(smallrng.first_index_table(seed, len(directions)))
    first = jnp.argmax(jnp.cumsum(valid.astype(jnp.int32)) == table[count] + 1)

    def add(nearest: Array, _: None) -> tuple[Array, Array]:
        row = _first_argmax(jnp.where(valid, 1.0 - nearest, -jnp.inf))
        center = directions[row]
        similarity = _contract("nr,r->n", directions, center)
        return jnp.maximum(nearest, similarity), center

    nearest = _contract("nr,r->n", directions, directions[first])
    _, others = jax.lax.scan(add, nearest, None, length=k - 1)
    centers = jnp.concatenate([directions[first][None], others])
    return jnp.where((jnp.arange(k) < count)[:, None], centers, 0.0)


def _lloyd(directions: Array, weights: Array, centers: Array, *, iterations: int) -> Array:
    columns = directions.T  # once, so that both products of a pass read rows of a right factor as they lie

    def go_on(state: tuple[Array, ...]) -> Array:
        passes, changed, _, _ = state
        return changed & (passes < iterations)

    def one_pass(state: tuple[Array, ...]) -> tuple[Array, ...]:
        passes, _, previous, centers = state
        products = _contract("kr,rn->kn", centers, columns)
        index = jnp.where(weights > 0, _first_argmax(jnp.abs(products)), 0)
        changed = jnp.any(index != previous)
        signed = jnp.where(products >= 0, weights, -weights)
        members = jnp.where(index == _rows(products), signed, 0.0)
        sums = _contract("kn,nr->kr", members, directions)
        length = row_norms(sums)[:, None]
        moved = jnp.where(length > EPS, sums / jnp.where(length > EPS, length, 1.0), centers)
        return passes + 1, changed, index, jnp.where(changed, moved, centers)

    passes = jnp.zeros((), jnp.int32)
    start = jnp.zeros(len(directions), jnp.int32)
    return jax.lax.while_loop(go_on, one_pass, (passes, jnp.ones((), bool), start, centers))[3]


def _first_argmax(values: Array) -> Array:
    """``argmax`` over the first axis; two plain reductions vectorise where one over pairs does not."""
    best = jnp.max(values, axis=0, keepdims=True)
    return jnp.min(jnp.where(values == best, _rows(values), len(values)), axis=0)


def _rows(array: Array) -> Array:
    """The row number of every entry, int32, broadcastable."""
    return jnp.arange(len(array), dtype=jnp.int32).reshape(-1, *[1] * (array.ndim - 1))

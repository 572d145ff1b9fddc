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
    weights = jnp.where(valid, weights, 0.0)
    return _lloyd(directions, weights, _farthest_first(directions, valid, k, seed), iterations=iterations)


class Assignment(NamedTuple):
    """For each point its centre and its signed projection on it."""

    segment: Int[Array, " n"]
    projection: Float[Array, " n"]


def assign(points: Float[Array, "n r"], centers: Float[Array, "k r"]) -> Assignment:
    """The centre of largest ``|<point, centre>|``, first if equal, and that product; 0, 0 at zero norm."""
    segment, projection = _strongest(_products(points, centers))
    nonzero = jnp.square(row_norms(points)) > EPS
    return Assignment(segment=jnp.where(nonzero, segment, 0), projection=jnp.where(nonzero, projection, 0.0))


def row_norms(points: Float[Array, "n r"]) -> Float[Array, " n"]:
    """The Euclidean length of every row."""
    return jnp.sqrt(jnp.sum(points * points, axis=1))


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
    """Centres after at most ``iterations`` passes; a point of no weight has no direction: it is of the first centre."""
    columns = directions.T  # once, so that both products of a pass read rows of a right factor as they lie

    def signed(product: Array) -> Array:
        return jnp.where(product >= 0, weights, -weights)

    def go_on(state: tuple[Array, ...]) -> Array:
        passes, changed, *_ = state
        return changed & (passes < iterations)

    def one_pass(state: tuple[Array, ...]) -> tuple[Array, ...]:
        passes, _, previous, member, centers = state
        members = jnp.where(previous == _rows(centers), member, 0.0)
        sums = _contract("kn,nr->kr", members, directions)
        length = row_norms(sums)[:, None]
        centers = jnp.where(length > EPS, sums / jnp.where(length > EPS, length, 1.0), centers)
        index, product = _strongest(list(_contract("kr,rn->kn", centers, columns)))
        return passes + 1, jnp.any(index != previous), index, signed(product), centers

    index, product = _strongest(_products(directions, centers))
    start = (jnp.zeros((), jnp.int32), jnp.any(index != 0), index, signed(product), centers)
    return jax.lax.while_loop(go_on, one_pass, start)[4]


def _products(points: Array, centers: Array) -> list[Array]:
    """``[n]`` for each centre. Not for a loop: a CPU takes three times as long for them as with points in columns."""
    products = _contract("nr,kr->nk", points, centers)
    return [products[:, i] for i in range(len(centers))]


def _strongest(products: list[Array]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """For every point the centre of largest magnitude, the first if equal, and the product there.

    A knockout of neighbouring centres: on a CPU one vectorised loop over the points, unlike ``argmax``. It takes at
    most four operations for an entry, few enough for XLA to think it bound by memory: it does not share it among
    threads, which would cost more than the loop.

    Args:
        products: ``[n]`` for each centre.
    """
    left = [(jnp.abs(each), jnp.full(each.shape, i, jnp.int32), each) for i, each in enumerate(products)]
    while len(left) > 1:
        pairs = [_stronger(*pair) for pair in zip(left[::2], left[1::2], strict=False)]
        left = pairs + left[2 * len(pairs) :]
    _, index, product = left[0]
    return index, product


def _stronger(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    takes = second[0] > first[0]
    return tuple(jnp.where(takes, new, old) for old, new in zip(first, second, strict=True))


def _first_argmax(values: Array) -> Array:
    """``argmax`` over the first axis; two plain reductions vectorise where one over pairs does not."""
    best = jnp.max(values, axis=0, keepdims=True)
    return jnp.min(jnp.where(values == best, _rows(values), len(values)), axis=0)


def _rows(array: Array) -> Array:
    """The row number of every entry, int32, broadcastable."""
    return jnp.arange(len(array), dtype=jnp.int32).reshape(-1, *[1] * (array.ndim - 1))

"""Frequent Directions: a sketch of a block's scatter matrix that takes one vector at a time.

Liberty, "Simple and Deterministic Matrix Sketching" (KDD 2013), in the form that shrinks once for many vectors
(Ghashami, Liberty, Phillips and Woodruff, arXiv:1501.01711). Of ``n`` vectors of dimension ``d`` it holds ``2 l`` rows
``B`` and never the vectors; with ``A`` the deviations from the (running) mean,

    0 <= A^T A - B^T B <= ||A||_F^2 / l,

and ``sum of B's deficit`` at most the energy of ``A`` outside any ``k < l`` directions over ``l - k``. The mean is not
known before the last vector, so a row is ``sqrt(w W / (w + W)) (x - mean so far)``, ``W`` the weight so far: the
scatter about the final mean is exactly the sum of those (West 1979).
"""

import math

import jax
import jax.numpy as jnp

from kakeya_jax.numeric import EPS
from kakeya_jax.pytree import pytree_dataclass, static_field
from kakeya_jax.typing import Array, Float, Int


@pytree_dataclass
class Sketch:
    """What is known of the vectors so far.

    Attributes:
        rows: ``[2 l, d]``, the sketch ``B``.
        used: rows that are taken, int32; the others are zero.
        mean: ``[d]`` mean so far.
        weight: their summed weight.
        size: ``l`` (static).
    """

    rows: Array
    used: Int[Array, ""]
    mean: Array
    weight: Float[Array, ""]
    size: int = static_field()


def init(size: int, dim: int) -> Sketch:
    """Nothing seen.

    Args:
        size: ``l``, at least 2: the error bound is one part in ``l`` of the scatter's trace.
        dim: of the vectors.

    Raises:
        ValueError: ``size`` is below 2.
    """
    _check_size(size)
    return Sketch(
        rows=jnp.zeros((2 * size, dim), jnp.float32),
        used=jnp.zeros((), jnp.int32),
        mean=jnp.zeros(dim, jnp.float32),
        weight=jnp.zeros((), jnp.float32),
        size=size,
    )


def update(sketch: Sketch, vector: Float[Array, " d"], weight: Float[Array, ""] | float = 1.0) -> Sketch:
    """Adds one vector: constant work, and one small eigendecomposition for every ``l + 1`` of them.

    Args:
        sketch: of the vectors before.
        vector: float32.
        weight: at least zero.
    """
    total = sketch.weight + weight
    share = weight / jnp.maximum(total, EPS)
    gap = vector - sketch.mean
    rows, used = jax.lax.cond(
        sketch.used == 2 * sketch.size,
        lambda rows: (_shrink(rows, sketch.size), jnp.full((), sketch.size - 1, jnp.int32)),
        lambda rows: (rows, sketch.used),
        sketch.rows,
    )
    return Sketch(
        rows=rows.at[used].set(jnp.sqrt(share * sketch.weight) * gap),
        used=used + 1,
        mean=sketch.mean + share * gap,
        weight=total,
        size=sketch.size,
    )


def value(sketch: Sketch) -> Float[Array, "two_l d"]:
    """``B``, of whose ``2 l`` rows some may be zero."""
    return sketch.rows


def sketch_block(block: Float[Array, "n d"], size: int, *, weights: Float[Array, " n"] | None = None) -> Sketch:
    """The sketch that ``update`` gives after every vector of ``block`` in turn, with as many eigendecompositions.

    Args:
        block: float32 vectors.
        size: ``l``, at least 2.
        weights: nonnegative; all one if None.

    Raises:
        ValueError: ``size`` is below 2.
    """
    n, dim = block.shape
    _check_size(size)
    deviations, mean, total = _running_deviations(block, weights)
    first, later = 2 * size, size + 1
    rounds = max(0, math.ceil((n - first) / later))
    padded = jnp.pad(deviations, ((0, first + rounds * later - n), (0, 0)))

    def add(rows: Array, new: Array) -> tuple[Array, None]:
        return jnp.concatenate([_shrink(rows, size)[: size - 1], new]), None

    rows, _ = jax.lax.scan(add, padded[:first], padded[first:].reshape(rounds, later, dim))
    used = n if rounds == 0 else size - 1 + n - first - (rounds - 1) * later
    return Sketch(rows=rows, used=jnp.asarray(used, jnp.int32), mean=mean, weight=total, size=size)


def _check_size(size: int) -> None:
    if size < 2:
        raise ValueError(f"a sketch has at least 2 directions, got size={size}")


def _running_deviations(block: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Each vector from the mean of those before it, scaled as in the module's docstring; last mean; total weight."""
    weights = jnp.ones(len(block), jnp.float32) if weights is None else jnp.maximum(weights, 0.0)
    # Sums of deviations from the first vector: a large common offset would cost the running sums their digits.
    origin = block[0]
    after = jnp.cumsum(weights)
    before = after - weights
    sums = jnp.cumsum(weights[:, None] * (block - origin), axis=0)
    mean_after = sums / jnp.maximum(after, EPS)[:, None]
    mean_before = jnp.concatenate([jnp.zeros_like(sums[:1]), mean_after[:-1]])
    factor = jnp.sqrt(weights * before / jnp.maximum(after, EPS))
    return factor[:, None] * (block - origin - mean_before), origin + mean_after[-1], after[-1]


def _shrink(rows: Float[Array, "two_l d"], size: int) -> Float[Array, "two_l d"]:
    """At most ``l - 1`` rows: all squared singular values less the ``l``-th largest, zero below."""
    count, dim = rows.shape
    contract = "nd,md->nm" if count <= dim else "nd,ne->de"
    gram = jnp.einsum(contract, rows, rows, precision=jax.lax.Precision.HIGHEST)
    values, vectors = jnp.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    if len(values) < size:
        kept = jnp.maximum(values, 0.0)  # fewer dimensions than directions: nothing to take off
    else:
        kept = jnp.maximum(values - jnp.maximum(values[size - 1], 0.0), 0.0)
    if count <= dim:
        factor = jnp.sqrt(kept / jnp.maximum(values, 1e-30))
        directions = jnp.einsum("nk,nd->kd", vectors, rows, precision=jax.lax.Precision.HIGHEST)
    else:
        factor, directions = jnp.sqrt(kept), vectors.T
    shrunk = (factor[:, None] * directions)[: size - 1]
    return jnp.pad(shrunk, ((0, count - len(shrunk)), (0, 0)))

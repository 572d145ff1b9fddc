"""Running second moments in float32: ``init``, ``update``, ``merge``, ``value``, on pytrees that ``jit`` carries.

Sums are compensated (Neumaier), so millions of tokens add up as exactly as thousands; states of different texts or
devices merge into the state of all of them (Chan, Golub and LeVeque, "Updating formulae", 1979).
"""

import jax
import jax.numpy as jnp

from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.typing import Array, Float


@pytree_dataclass
class Sum:
    """A compensated sum: its value is ``total + lost``."""

    total: Array
    lost: Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> "Sum":
        """An empty sum."""
        return cls(total=jnp.zeros(shape, jnp.float32), lost=jnp.zeros(shape, jnp.float32))

    def add(self, value: Array) -> "Sum":
        """Adds ``value``, keeping what the rounding of the sum loses."""
        total = self.total + value
        bigger = jnp.abs(self.total) >= jnp.abs(value)
        lost = jnp.where(bigger, (self.total - total) + value, (value - total) + self.total)
        return Sum(total=total, lost=self.lost + lost)

    def value(self) -> Array:
        """The sum."""
        return self.total + self.lost


@pytree_dataclass
class Moments:
    """Count, mean, scatter about the mean, and largest magnitudes of vectors, for each head.

    Attributes:
        count: vectors seen.
        mean: ``[K, D]``.
        scatter: ``[K, D, D]`` sum of outer products of deviations.
        largest: ``[K, D]`` largest magnitude of each channel.
    """

    count: Sum
    mean: Sum
    scatter: Sum
    largest: Array

    @classmethod
    def init(cls, heads: int, dim: int) -> "Moments":
        """Nothing seen."""
        return cls(
            count=Sum.zeros(()),
            mean=Sum.zeros((heads, dim)),
            scatter=Sum.zeros((heads, dim, dim)),
            largest=jnp.zeros((heads, dim), jnp.float32),
        )

    def update(self, vectors: Float[Array, "K n D"]) -> "Moments":
        """Adds the vectors of one text."""
        vectors = vectors.astype(jnp.float32)
        # About the first vector: a sum of values far from zero would lose the digits that the deviations are in.
        first = vectors[:, 0]
        shifted = vectors - first[:, None]
        mean = jnp.mean(shifted, axis=1)
        batch = Moments(
            count=Sum.zeros(()).add(jnp.float32(vectors.shape[1])),
            mean=Sum(total=first, lost=mean),
            scatter=Sum.zeros((*mean.shape, mean.shape[-1])).add(_outer(shifted - mean[:, None])),
            largest=jnp.max(jnp.abs(vectors), axis=1),
        )
        return self.merge(batch)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both."""
        here, there = self.count.value(), other.count.value()
        share = there / jnp.maximum(here + there, 1.0)
        gap_total, gap_lost = other.mean.total - self.mean.total, other.mean.lost - self.mean.lost
        gap = gap_total + gap_lost
        between = gap[:, :, None] * gap[:, None, :] * (here * share)
        return Moments(
            count=self.count.add(there),
            mean=self.mean.add(gap_total * share).add(gap_lost * share),
            scatter=self.scatter.add(other.scatter.value()).add(between),
            largest=jnp.maximum(self.largest, other.largest),
        )

    def covariance(self) -> Float[Array, "K D D"]:
        """Scatter over count."""
        return self.scatter.value() / jnp.maximum(self.count.value(), 1.0)


@pytree_dataclass
class SecondMoment:
    """Sum of outer products ``[K, D, D]`` and their count, about zero."""

    count: Sum
    outer: Sum

    @classmethod
    def init(cls, heads: int, dim: int) -> "SecondMoment":
        """Nothing seen."""
        return cls(count=Sum.zeros(()), outer=Sum.zeros((heads, dim, dim)))

    def update(self, vectors: Float[Array, "K n D"], count: Array | None = None) -> "SecondMoment":
        """Adds vectors; ``count`` says how many of them count if the others are zero by construction."""
        seen = jnp.float32(vectors.shape[1]) if count is None else count.astype(jnp.float32)
        return SecondMoment(count=self.count.add(seen), outer=self.outer.add(_outer(vectors.astype(jnp.float32))))

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """The sum of both."""
        return SecondMoment(count=self.count.add(other.count.value()), outer=self.outer.add(other.outer.value()))

    def value(self) -> Float[Array, "K D D"]:
        """The mean outer product."""
        return self.outer.value() / jnp.maximum(self.count.value(), 1.0)


def _outer(vectors: Float[Array, "K n D"]) -> Float[Array, "K D D"]:
    return jnp.einsum("knd,kne->kde", vectors, vectors, precision=jax.lax.Precision.HIGHEST)

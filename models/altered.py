"""A stand-in for the cache whose last queries attend in another way, beside exact attention over the same inputs.

A whole text runs at once. Queries before the last ``steps`` attend densely, as in an exact prefill; the last ones do
what ``attend`` says. Their keys and values come from the residual stream as those steps left it, so what one layer gets
wrong reaches the next, as in decoding. Both outputs of every layer are kept: on the same inputs, they are what the
change costs in that layer alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from kakeya_jax.models.probe import dense_causal
from kakeya_jax.pytree import pytree_dataclass, static_field
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.typing import Array, Float, Int


@pytree_dataclass
class StepInputs:
    """What the last ``n`` queries of a layer may read; ``K`` key/value heads with ``G`` queries each.

    Attributes:
        query: ``[B, K, G, n, D]`` after their rotary embedding.
        key: ``[B, K, T, D]`` after it, and
        plain_key: ``[B, T, K, D]`` before it.
        value: ``[B, K, T, D]``.
        positions: ``[B, T]`` of all tokens.
        rope: the rotary embedding.
        scale: factor of the logits.
    """

    query: Array
    key: Array
    plain_key: Array
    value: Array
    positions: Array
    rope: Rope = static_field()
    scale: float = static_field()

    def logits(self) -> Float[Array, "B K G n T"]:
        """Scaled logits of the last queries over all keys, ``-inf`` where a key comes after its query; float32."""
        return self.logits_of(self.key)

    def logits_of(self, key: Float[Array, "B K T D"]) -> Float[Array, "B K G n T"]:
        """``logits`` with other keys in the place of ``key``."""
        logits = jnp.einsum("bkgnd,bktd->bkgnt", self.query, key) * self.scale
        last = self.positions[:, -self.query.shape[3] :]
        causal = self.positions[:, None, :] <= last[:, :, None]
        return jnp.where(causal[:, None, None], logits, -jnp.inf)


Attend = Callable[[Any, StepInputs], Float[Array, "B K G n D"]]
"""From a layer's state and the inputs to the output of the last queries; a pure function of arrays."""


@pytree_dataclass
class AlteredLayer:
    """One layer.

    Attributes:
        state: what ``attend`` is given first: any pytree.
        exact, altered: outputs of the last queries ``[B, n, H, D]``; None before the layer has run.
        attend: how the last queries attend (static).
        steps: how many they are (static).
    """

    state: Any
    exact: Array | None
    altered: Array | None
    attend: Attend = static_field()
    steps: int = static_field()

    def run(
        self,
        query: Float[Array, "B T H D"],
        key: Float[Array, "B T K D"],
        value: Float[Array, "B T K D"],
        *,
        positions: Int[Array, "B T"],
        rope: Rope,
        scale: float,
    ) -> tuple[Float[Array, "B T H D"], "AlteredLayer"]:
        """Attention of a whole text, and the layer with its outputs; queries are rotated, keys are not."""
        batch, length, num_heads, dim = query.shape
        heads = key.shape[2]
        grouped = query.astype(jnp.float32).reshape(batch, length, heads, -1, dim).transpose(0, 2, 3, 1, 4)
        rotated = jnp.swapaxes(apply_rope(key, positions[..., None], rope).astype(jnp.float32), 1, 2)
        values = jnp.swapaxes(value.astype(jnp.float32), 1, 2)
        inputs = StepInputs(
            query=grouped[:, :, :, -self.steps :],
            key=rotated,
            plain_key=key,
            value=values,
            positions=positions,
            rope=rope,
            scale=scale,
        )

        def flat(out: Array) -> Array:
            return out.transpose(0, 3, 1, 2, 4).reshape(batch, -1, num_heads, dim)

        dense = flat(dense_causal(grouped, rotated, values, scale))
        altered = flat(self.attend(self.state, inputs))
        out = jnp.concatenate([dense[:, : -self.steps], altered], axis=1)
        ran = dataclasses.replace(self, exact=dense[:, -self.steps :], altered=altered)
        return out.astype(query.dtype), ran


@pytree_dataclass
class AlteredCache:
    """All layers, where ``Decoder`` takes a cache; holds no tokens."""

    layers: tuple[AlteredLayer, ...]
    batch_size: int = static_field()

    @classmethod
    def of(cls, attend: Attend, states: tuple[Any, ...], *, steps: int, batch_size: int = 1) -> "AlteredCache":
        """Layers that attend alike, each with a state of its own.

        Args:
            attend: how the last queries attend.
            states: one for each layer; None for none.
            steps: the number of last queries.
            batch_size: rows.
        """
        layers = tuple(
            AlteredLayer(state=state, exact=None, altered=None, attend=attend, steps=steps) for state in states
        )
        return cls(layers=layers, batch_size=batch_size)

    @property
    def length(self) -> Int[Array, " B"]:
        """Tokens read before: none."""
        return jnp.zeros(self.batch_size, jnp.int32)

    def replace_layers(self, layers: tuple[Any, ...]) -> "AlteredCache":
        """The cache after a run."""
        return dataclasses.replace(self, layers=layers)

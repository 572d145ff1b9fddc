"""A plain cache of exact keys and values: the baseline that compressed caches are timed against.

``CompressedCache`` with ``identity`` keeps the same numbers, in a window that it must be able to code from. This one is
two buffers a layer, written in place and read by the fastest dense attention there is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import ModelShape
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.typing import Array, Float, Int


@pytree_dataclass
class DenseLayer:
    """One layer: keys, after their rotary embedding, and values ``[B, max_length, K, D]``; ``length`` int32 ``[B]``.

    All rows have the same length.
    """

    key: Array
    value: Array
    length: Array

    def run(
        self,
        query: Float[Array, "B T H D"],
        key: Float[Array, "B T K D"],
        value: Float[Array, "B T K D"],
        *,
        positions: Int[Array, "B T"],
        rope: Rope,
        scale: float,
    ) -> tuple[Float[Array, "B T H D"], "DenseLayer"]:
        """Appends a chunk and attends; queries are rotated, keys are not. NaN where the cache has no room."""
        key = apply_rope(key, positions[..., None], rope)
        start = (0, self.length[0], 0, 0)
        keys = jax.lax.dynamic_update_slice(self.key, key.astype(self.key.dtype), start)
        values = jax.lax.dynamic_update_slice(self.value, value.astype(self.value.dtype), start)
        length = self.length + key.shape[1]
        out = _attention(query.astype(keys.dtype), keys, values, positions=positions, length=length, scale=scale)
        out = jnp.where(length[:, None, None, None] <= keys.shape[1], out, jnp.nan)
        return out.astype(query.dtype), DenseLayer(key=keys, value=values, length=length)


@pytree_dataclass
class DenseCache:
    """All layers, where ``Decoder`` takes a cache. Rows have equal lengths: padding is not taken."""

    layers: tuple[DenseLayer, ...]

    @classmethod
    def init(cls, config: ModelShape, *, batch_size: int, max_length: int, dtype: Any = jnp.bfloat16) -> "DenseCache":
        """An empty cache.

        Args:
            config: the model's config (number of layers, key/value heads, head dimension).
            batch_size: rows.
            max_length: tokens each row can hold; a chunk beyond them gives NaN.
            dtype: of what is kept; cuDNN attends to bfloat16 and float16 only.
        """
        shape = (batch_size, max_length, config.num_kv_heads, config.head_dim)

        def layer() -> DenseLayer:
            zeros = jnp.zeros(batch_size, jnp.int32)
            return DenseLayer(key=jnp.zeros(shape, dtype), value=jnp.zeros(shape, dtype), length=zeros)

        return cls(layers=tuple(layer() for _ in range(config.num_layers)))

    @property
    def length(self) -> Int[Array, " B"]:
        """Tokens of each row."""
        return self.layers[0].length

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.layers[0].key.shape[0]

    def replace_layers(self, layers: tuple[DenseLayer, ...]) -> "DenseCache":
        """The cache after a run."""
        return dataclasses.replace(self, layers=layers)


def _attention(
    query: Array, key: Array, value: Array, *, positions: Int[Array, "B T"], length: Int[Array, " B"], scale: float
) -> Float[Array, "B T H D"]:
    """cuDNN for steps of one token where it can; its mask of a longer chunk would be another one."""
    if query.shape[1] > 1:
        visible = jnp.arange(key.shape[1]) <= positions[:, None, :, None]
        return jax.nn.dot_product_attention(query, key, value, mask=visible, scale=scale)
    cudnn = jax.default_backend() == "gpu" and key.dtype in (jnp.bfloat16, jnp.float16)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        key_value_seq_lengths=length,
        implementation="cudnn" if cudnn else None,
    )

"""The layers of a decoder: RMSNorm, SwiGLU, grouped-query attention, and the block of both."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from kakeya_jax.models.attention import attend
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.typing import Array, Bool, Float, Int

INITIAL_STD = 0.02
"""Standard deviation of freshly initialised projections and embeddings."""


class RMSNorm(nn.Module):
    """``scale * x / sqrt(mean(x**2) + eps)`` over the last axis (arXiv:1910.07467), computed in float32."""

    eps: float
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Normalises ``x``; returns its dtype."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), self.param_dtype)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.eps) * scale.astype(jnp.float32)).astype(x.dtype)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv:2002.05202)."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """The feed-forward layer, without its residual connection."""
        config, bias = self.config, self.config.mlp_bias
        gate = _dense(self, config.intermediate_size, bias, "gate_proj")(x)
        up = _dense(self, config.intermediate_size, bias, "up_proj")(x)
        return _dense(self, config.hidden_size, bias, "down_proj")(jax.nn.silu(gate) * up)


class Attention(nn.Module):
    """Causal grouped-query attention over a layer's cache and the tokens given.

    Sows query, key and value ``[B, T, heads, D]``, before their rotary embedding, into the
    ``"intermediates"`` collection: ``model.apply(..., mutable="intermediates")`` returns them.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T E"],
        layer_cache: Any,
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T E"], Any]:
        """The attention layer, without its residual connection, and the layer's new cache."""
        config, bias = self.config, self.config.qkv_bias
        query = self._heads(_dense(self, config.num_heads * config.head_dim, bias, "q_proj")(x))
        key = self._heads(_dense(self, config.num_kv_heads * config.head_dim, bias, "k_proj")(x))
        value = self._heads(_dense(self, config.num_kv_heads * config.head_dim, bias, "v_proj")(x))
        if config.qk_norm:
            query = RMSNorm(config.rms_norm_eps, self.param_dtype, name="q_norm")(query)
            key = RMSNorm(config.rms_norm_eps, self.param_dtype, name="k_norm")(key)
        for name, stream in (("query", query), ("key", key), ("value", value)):
            self.sow("intermediates", name, stream)
        out, layer_cache = attend(
            query,
            key,
            value,
            layer_cache,
            positions=positions,
            valid=valid,
            rope=config.rope,
            scale=config.head_dim**-0.5,
            implementation=self.implementation,
        )
        out = out.astype(self.dtype).reshape(*x.shape[:2], -1)
        return _dense(self, config.hidden_size, config.output_bias, "o_proj")(out), layer_cache

    def _heads(self, flat: Array) -> Array:
        return flat.reshape(*flat.shape[:2], -1, self.config.head_dim)


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then SwiGLU."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T E"],
        layer_cache: Any,
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T E"], Any]:
        """The residual stream after this layer, and the layer's new cache."""
        eps = self.config.rms_norm_eps
        attention = Attention(self.config, self.dtype, self.param_dtype, self.implementation, name="attention")
        mlp = SwiGLU(self.config, self.dtype, self.param_dtype, name="mlp")
        normed = RMSNorm(eps, self.param_dtype, name="attention_norm")(x)
        attended, layer_cache = attention(normed, layer_cache, positions, valid)
        x = x + attended
        return x + mlp(RMSNorm(eps, self.param_dtype, name="mlp_norm")(x)), layer_cache


def _dense(module: Attention | SwiGLU, features: int, use_bias: bool, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        kernel_init=nn.initializers.normal(INITIAL_STD),
        name=name,
    )

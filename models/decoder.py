"""The language model: tokens in, logits and the new cache out."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from kakeya_jax.cache import CompressedCache
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.layers import INITIAL_STD, DecoderLayer, RMSNorm
from kakeya_jax.page_closing import ready_layers
from kakeya_jax.typing import Array, Bool, Float, Int


class DecoderOutput(NamedTuple):
    """What a decoder returns.

    Attributes:
        logits: float32; ``T`` is 1 with ``last_only``.
        cache: the cache with the valid tokens appended; ``None`` if none was given.
    """

    logits: Float[Array, "B T V"]
    cache: CompressedCache | None


class Decoder(nn.Module):
    """A causal language model of the Llama family.

    ``model.apply({"params": params}, tokens, cache=cache)`` is prefill, chunked prefill and one-token decode
    alike; without a cache it is the dense forward pass.

    Attributes:
        config: the architecture.
        dtype: dtype of activations; norms, softmax and logits are float32 in any case.
        param_dtype: dtype of parameters that ``init`` makes.
        precision: precision of every matrix product, ``"highest"`` for true float32 on hardware whose default
            is less; ``None`` for JAX's default.
        implementation: how attention over a cache is computed; ``None`` for the best available.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    precision: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        cache: CompressedCache | None = None,
        mask: Bool[Array, "B T"] | None = None,
        *,
        last_only: bool = False,
    ) -> DecoderOutput:
        """Reads ``tokens`` after what is in ``cache``.

        Args:
            tokens: token ids in ``[0, vocab_size)``; larger ones give NaN.
            cache: what each row has read before; ``None`` at the start of a text that needs no cache.
            mask: the valid tokens of a ragged batch, padded on either side; each row gets the result it has
                alone. Logits of padding are meaningless.
            last_only: compute the logits of each row's last valid token only, ``[B, 1, V]``: a prefill with a
                large vocabulary then does not hold ``T`` times as many.

        Returns:
            The logits, and the cache with the valid tokens appended.
        """
        # A context rather than an argument of each layer: it reaches the attention functions and their
        # kernels as well.
        with _matmul_precision(self.precision):
            return self._forward(tokens, cache, mask, last_only)

    def _forward(
        self, tokens: Array, cache: CompressedCache | None, mask: Array | None, last_only: bool
    ) -> DecoderOutput:
        config = self.config
        embed = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(INITIAL_STD),
            name="embed_tokens",
        )
        positions = token_positions(tokens.shape, mask, None if cache is None else cache.length)
        # Gathered in the dtype of the table and only then rounded, so that its gradient sums over tokens in
        # that dtype.
        x = jnp.take(embed.embedding, tokens, axis=0, mode="fill").astype(self.dtype)
        held: Any = [None] * config.num_layers if cache is None else cache.layers
        if tokens.shape[1] == 1 and isinstance(cache, CompressedCache):
            held = ready_layers(cache, mask)
        new_layers: list[Any] = []
        for index in range(config.num_layers):
            layer = DecoderLayer(config, self.dtype, self.param_dtype, self.implementation, name=f"layers_{index}")
            x, layer_cache = layer(x, held[index], positions, mask)
            new_layers.append(layer_cache)
        if last_only:
            x = jnp.take_along_axis(x, _last_valid(tokens.shape, mask)[:, None, None], axis=1)
        x = RMSNorm(config.rms_norm_eps, self.param_dtype, name="final_norm")(x)
        head = embed.embedding.T if config.tie_word_embeddings else self._head_kernel()
        logits = jnp.matmul(x, head.astype(self.dtype), preferred_element_type=jnp.float32)
        return DecoderOutput(logits, None if cache is None else cache.replace_layers(tuple(new_layers)))

    def _head_kernel(self) -> Array:
        return _HeadKernel(self.config, self.param_dtype, name="lm_head")()


class _HeadKernel(nn.Module):
    """Holds the untied output projection, so that it is ``params["lm_head"]["kernel"]``."""

    config: ModelConfig
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self) -> Float[Array, "E V"]:
        shape = (self.config.hidden_size, self.config.vocab_size)
        return self.param("kernel", nn.initializers.normal(INITIAL_STD), shape, self.param_dtype)


def token_positions(
    shape: tuple[int, ...], mask: Bool[Array, "B T"] | None, length: Int[Array, " B"] | None
) -> Int[Array, "B T"]:
    """Position of each token: what its row has read before, plus the valid tokens before it in its row."""
    if mask is None:
        before = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    else:
        counts = mask.astype(jnp.int32)
        before = jnp.cumsum(counts, axis=1) - counts
    return before if length is None else before + length[:, None].astype(jnp.int32)


def _last_valid(shape: tuple[int, ...], mask: Bool[Array, "B T"] | None) -> Int[Array, " B"]:
    if mask is None:
        return jnp.full((shape[0],), shape[1] - 1, jnp.int32)
    return shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1).astype(jnp.int32)


def _matmul_precision(precision: str | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)

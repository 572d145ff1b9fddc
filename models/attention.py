"""How a decoder layer attends: dense without a cache; with one, append to it and attend to what it holds."""

import jax
import jax.numpy as jnp

from kakeya_jax.cache import LayerCache
from kakeya_jax.models.altered import AlteredLayer
from kakeya_jax.models.dense_cache import DenseLayer
from kakeya_jax.models.probe import PerturbedLayer
from kakeya_jax.page_closing import ReadyLayer
from kakeya_jax.pallas_kernels.attention import compressed_attention
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.typing import Array, Bool, Float, Int


def attend(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T K D"],
    value: Float[Array, "B T K D"],
    layer_cache: LayerCache | ReadyLayer | PerturbedLayer | AlteredLayer | DenseLayer | None,
    *,
    positions: Int[Array, "B T"],
    valid: Bool[Array, "B T"] | None,
    rope: Rope,
    scale: float,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H D"], LayerCache | PerturbedLayer | AlteredLayer | DenseLayer | None]:
    """Causal attention of a chunk over everything cached before it and over itself.

    Args:
        query: queries before their rotary embedding.
        key: keys before their rotary embedding (after any per-head norm).
        value: values.
        layer_cache: what came before; ``None`` attends to the chunk alone, dense. A ``PerturbedLayer`` does that too,
            with its perturbation added to what would be read from codes; an ``AlteredLayer`` too, but for its last
            queries. A ``DenseLayer`` keeps everything as it is. A ``ReadyLayer`` takes one token.
        positions: absolute position of every token; padding may hold anything.
        valid: which tokens are real; ``None`` means all.
        rope: the rotary embedding.
        scale: factor of the logits, usually ``D ** -0.5``.
        implementation: a backend by name; ``None`` takes the best that works.

    Returns:
        The attention output (undefined where ``valid`` is false) and the cache with the chunk appended.
    """
    rotated_query = apply_rope(query, positions[..., None], rope)
    if layer_cache is None:
        rotated_key = apply_rope(key, positions[..., None], rope)
        out = dense_attention(
            rotated_query, rotated_key, value, valid=valid, scale=scale, implementation=implementation
        )
        return out, None
    if isinstance(layer_cache, AlteredLayer | DenseLayer):
        if valid is not None:
            raise NotImplementedError(f"{type(layer_cache).__name__} takes texts without padding")
        return layer_cache.run(rotated_query, key, value, positions=positions, rope=rope, scale=scale)
    if isinstance(layer_cache, PerturbedLayer):
        if valid is not None:
            raise NotImplementedError("perturbed attention takes whole texts without padding")
        out = layer_cache.attend(rotated_query, key, value, positions=positions, rope=rope, scale=scale)
        return out, layer_cache
    update = layer_cache.append(key, value, valid=valid, rope=rope)
    out = compressed_attention(
        rotated_query,
        update.layer.key,
        update.layer.value,
        chunk=update.chunk,
        positions=positions,
        rope=rope,
        scale=scale,
        implementation=implementation,
    )
    # A row that overflows its cache keeps what it held; its output must not pass for a result.
    return jnp.where(update.fits[:, None, None, None], out, jnp.nan), update.layer


def dense_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T K D"],
    value: Float[Array, "B T K D"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "B T H D"]:
    """Causal attention within one chunk, exact; rotary embeddings already applied.

    ``implementation="cudnn"`` is the fast path for training on a GPU (bfloat16 or float16, no padding). The default
    computes logits and softmax in float32 and works everywhere.
    """
    if implementation == "cudnn":
        if valid is not None:
            raise NotImplementedError("implementation='cudnn' takes no padding mask; use implementation=None")
        return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=True, implementation="cudnn")
    batch, length, num_heads, dim = query.shape
    num_kv_heads = key.shape[2]
    grouped = query.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, dim)
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32) * scale
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None, None]
    if valid is not None:
        # A padding query may see no key at all; it then sees itself, so that its undefined output stays finite.
        mask = mask & (valid[:, None, None, None, :] | jnp.eye(length, dtype=bool))
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, value, preferred_element_type=jnp.float32)
    return out.reshape(batch, length, num_heads, dim).astype(query.dtype)

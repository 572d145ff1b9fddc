"""Choosing the next token from logits."""

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array, Float, Int


def sample(
    logits: Float[Array, "B V"],
    key: Array,
    *,
    temperature: Float[Array, ""] | float,
    top_k: int | None = None,
    top_p: Float[Array, ""] | float | None = None,
) -> Int[Array, " B"]:
    """Draws one token for each row from ``softmax(logits / temperature)``, cut to ``top_k``, then to
    ``top_p``.

    Args:
        logits: unnormalised log probabilities.
        key: PRNG key.
        temperature: above 0.
        top_k: keep the ``k`` most probable tokens (all that tie with the last of them); ``None`` keeps all.
        top_p: keep the most probable tokens until their probabilities sum to at least ``p``
            (arXiv:1904.09751), always at least one; ``None`` keeps all.
    """
    scaled = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        scaled = keep_top_k(scaled, top_k)
    if top_p is not None:
        scaled = keep_top_p(scaled, top_p)
    return jax.random.categorical(key, scaled, axis=-1).astype(jnp.int32)


def keep_top_k(logits: Float[Array, "B V"], top_k: int) -> Float[Array, "B V"]:
    """Minus infinity for all but the ``k`` largest logits of each row and those equal to the last of them."""
    smallest_kept = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < smallest_kept, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "B V"], top_p: Float[Array, ""] | float) -> Float[Array, "B V"]:
    """Minus infinity outside the smallest set of most probable tokens that holds ``p`` of the probability."""
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first token is kept whatever rounding makes of p = 0.
    kept = (mass_before < top_p).at[:, 0].set(True)
    smallest_kept = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest_kept, -jnp.inf, logits)

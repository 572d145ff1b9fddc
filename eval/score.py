"""What is recorded for one predicted token: both losses, their divergence, whether both guess the same."""

import jax
import jax.numpy as jnp

from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.typing import Array, Bool, Float, Int


@pytree_dataclass
class TokenScores:
    """One entry for each predicted token, in any common shape.

    Attributes:
        reference_nll: negative log-likelihood of the true next token under the dense model, nats.
        candidate_nll: the same through the compressed cache.
        kl: KL(reference || candidate) of the next-token distributions, nats.
        agree: whether both have the same most likely next token.
    """

    reference_nll: Float[Array, "*shape"]
    candidate_nll: Float[Array, "*shape"]
    kl: Float[Array, "*shape"]
    agree: Bool[Array, "*shape"]


def score(
    reference: Float[Array, "*shape V"],
    candidate_logits: Float[Array, "*shape V"],
    targets: Int[Array, "*shape"],
) -> TokenScores:
    """Scores the candidate's logits against the reference's log-probabilities, in float32.

    Args:
        reference: log-probabilities of the dense model (normalised).
        candidate_logits: logits of the candidate.
        targets: the true next tokens.
    """
    candidate = jax.nn.log_softmax(candidate_logits.astype(jnp.float32))
    return TokenScores(
        reference_nll=-_pick(reference, targets),
        candidate_nll=-_pick(candidate, targets),
        kl=kl_divergence(reference, candidate),
        agree=jnp.argmax(reference, axis=-1) == jnp.argmax(candidate, axis=-1),
    )


def kl_divergence(p: Float[Array, "*shape V"], q: Float[Array, "*shape V"]) -> Float[Array, "*shape"]:
    """KL(p || q) of log-probabilities, nats; never negative.

    The textbook sum of ``p (log p - log q)`` is a difference of large terms: rounding the two normalisers
    alone gives 1e-6 for equal distributions. Because both sum to one, adding ``q - p`` changes nothing, and
    every term becomes ``p (e^d - 1 - d) >= 0`` with ``d = log q - log p``, of second order in the difference.
    """
    d = q - p
    near = jnp.abs(d) < 0.5
    d_near = jnp.where(near, d, 0.0)
    terms_near = jnp.exp(p) * (jnp.expm1(d_near) - d_near)
    # Far apart, e^d could overflow where p underflows; q cannot. An impossible token (p = 0) costs only q.
    d_far = jnp.where(jnp.exp(p) > 0, d, 0.0)
    terms_far = jnp.exp(q) - jnp.exp(p) * (1.0 + d_far)
    terms = jnp.where(near, terms_near, terms_far)
    # expm1 is exact to an ulp, which can leave -1e-9 where d is tiny; NaN stays NaN.
    return jnp.maximum(jnp.sum(terms, axis=-1), 0.0)


def _pick(log_probabilities: Array, targets: Array) -> Array:
    return jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]

"""Decode steps whose attention is approximate, beside exact ones: what the gates of ``quality_gates`` judge.

Tokens are teacher-forced and all steps of a passage run at once (see ``models.altered``); each step reads the keys and
values that the approximate steps before it left.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.eval.quality_gates import StepMetrics
from kakeya_jax.eval.text import cut_passages
from kakeya_jax.models.altered import AlteredCache, Attend
from kakeya_jax.typing import Array, Float, Int


def measure_steps(
    model: Any,
    params: Any,
    passages: Int[np.ndarray, "N T"],
    attend: Attend,
    states: Sequence[Any] | None = None,
    *,
    steps: int,
    top_k: int = 10,
) -> StepMetrics:
    """The last ``steps`` tokens of every passage as approximate decode steps.

    Args:
        model: the decoder.
        params: its parameters.
        passages: texts of one length.
        attend: the approximate attention (see ``models.altered``).
        states: what ``attend`` is given, one for each layer; None for none.
        steps: decode steps of a passage, at most all of its tokens.
        top_k: likeliest tokens that are compared.

    Raises:
        ValueError: ``steps`` is not between 1 and the length of a passage.
    """
    if not 1 <= steps <= passages.shape[1]:
        raise ValueError(f"steps={steps} must be between 1 and {passages.shape[1]}, the tokens of a passage")
    given = (None,) * model.config.num_layers if states is None else tuple(states)
    cache = AlteredCache.of(attend, given, steps=steps)
    run = jax.jit(functools.partial(_run, model, top_k=top_k))
    with jax.default_matmul_precision("highest"):
        parts = [jax.device_get(run(params, cache, jnp.asarray(tokens))) for tokens in passages]
    mse, overlap, argmax, relative = (np.concatenate(each) for each in zip(*parts, strict=True))
    return StepMetrics(logit_mse=mse, top_k_overlap=overlap, same_argmax=argmax, layer_relative_l2=relative)


def step_passages(tokens: Int[np.ndarray, " n"], context: int, passages: int | None, steps: int) -> np.ndarray:
    """Evenly spaced passages, by default as many as hold 20,000 decode steps, or as the text holds."""
    most = max(1, len(tokens) // context)
    count = min(most, -(-20_000 // steps)) if passages is None else passages
    return cut_passages(tokens, context, count)


def _run(
    model: Any, params: Any, cache: AlteredCache, tokens: Int[Array, " T"], *, top_k: int
) -> tuple[Array, Array, Array, Array]:
    """Logit MSE, overlap and argmax ``[n]``, and relative errors ``[n, layers]``, of one passage."""
    steps = cache.layers[0].steps
    exact = model.apply({"params": params}, tokens[None]).logits[0, -steps:].astype(jnp.float32)
    output = model.apply({"params": params}, tokens[None], cache=cache)
    altered = output.logits[0, -steps:].astype(jnp.float32)
    overlap = top_k_overlap(exact, altered, top_k)
    relative = [
        _relative_error(layer, params[f"layers_{index}"]["attention"]["o_proj"])
        for index, layer in enumerate(output.cache.layers)
    ]
    return (
        jnp.mean((exact - altered) ** 2, axis=-1),
        overlap,
        jnp.argmax(exact, axis=-1) == jnp.argmax(altered, axis=-1),
        jnp.stack(relative, axis=-1),
    )


def top_k_overlap(exact: Float[Array, "n V"], altered: Float[Array, "n V"], k: int) -> Float[Array, " n"]:
    """Share of the ``k`` largest entries of each row of ``exact`` that are among the ``k`` largest of ``altered``."""
    first, second = jax.lax.top_k(exact, k)[1], jax.lax.top_k(altered, k)[1]
    return jnp.mean(jnp.any(first[:, :, None] == second[:, None, :], axis=-1), axis=-1)


def _relative_error(layer: Any, projection: Any) -> Float[Array, " n"]:
    """Length of the error after the output projection over the length of the exact output."""
    exact, altered = (each[0].reshape(each.shape[1], -1) for each in (layer.exact, layer.altered))
    kernel = projection["kernel"].astype(jnp.float32)
    whole = exact @ kernel + projection.get("bias", 0.0)
    return jnp.linalg.norm((altered - exact) @ kernel, axis=-1) / jnp.maximum(jnp.linalg.norm(whole, axis=-1), 1e-30)

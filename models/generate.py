"""Text generation: one prefill, then a scan over decode steps with the cache as its carry."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import CompressedCache
from kakeya_jax.models.decoder import Decoder, DecoderOutput
from kakeya_jax.models.sampling import sample
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array, Bool, Int


class Generation(NamedTuple):
    """What ``generate`` returns.

    Attributes:
        tokens: ``[B, max_new_tokens]``; a row that hit a stop token is padded after it.
        lengths: ``[B]``, generated tokens of each row, its stop token included.
        cache: holds each row's prompt and generated tokens; pass it on to continue.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, " B"]
    cache: CompressedCache


def generate(
    model: Decoder,
    params: Any,
    prompt_tokens: Int[Array, "B T"] | np.ndarray | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    cache: CompressedCache | None = None,
    recipe: Recipe | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    pad_token: int = 0,
    seed: int | Array = 0,
    mask: Bool[Array, "B T"] | np.ndarray | None = None,
) -> Generation:
    """Continues each prompt by up to ``max_new_tokens`` tokens.

    Compiled once for each shape of prompt and cache, whatever the prompt, temperature, ``top_p``, seed and
    stop tokens.

    Args:
        model: the decoder.
        params: its parameters.
        prompt_tokens: token ids; with a ``cache`` that holds tokens, what follows them.
        max_new_tokens: length of the result.
        cache: where keys and values go. It is given up: use the one returned. ``None`` makes one of
            ``recipe``.
        recipe: how that cache is coded; ``None`` for ``identity``, plain bfloat16.
        temperature: 0 takes the most probable token; above, see ``sampling.sample``.
        top_k: sample among the ``k`` most probable tokens only.
        top_p: sample among the most probable tokens that hold this much of the probability, in ``(0, 1]``.
        stop_tokens: tokens after which a row is finished, such as ``model.config.eos_token_ids``.
        pad_token: what follows in ``tokens`` after a row is finished.
        seed: seed of the draws, or a PRNG key; step ``i`` draws with the ``i``-th of as many keys split from it.
        mask: which prompt tokens are valid where prompts differ in length, padded on either side.

    Raises:
        ValueError: an option outside its range, or a cache too short for prompt and result.
    """
    tokens = jnp.asarray(prompt_tokens, dtype=jnp.int32)
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"prompt_tokens has shape {tokens.shape}; give [batch, tokens] with at least one token")
    valid = None if mask is None else jnp.asarray(mask, dtype=bool)
    _check_options(tokens, valid, max_new_tokens, temperature, top_k, top_p)
    if cache is None:
        cache = CompressedCache.init(
            model.config,
            Recipe.named("identity") if recipe is None else recipe,
            batch_size=tokens.shape[0],
            max_length=tokens.shape[1] + max_new_tokens,
        )
    elif recipe is not None:
        raise ValueError("give either a cache or the recipe to make one of, not both")
    _check_capacity(cache, tokens, valid, max_new_tokens)
    stop = jnp.asarray(list(stop_tokens), dtype=jnp.int32)
    result = _generate(
        model,
        params,
        tokens,
        valid,
        cache,
        jax.random.key(seed) if isinstance(seed, int) else seed,
        None if temperature == 0 else jnp.float32(temperature),
        None if top_p is None else jnp.float32(top_p),
        stop if stop.size else None,
        jnp.int32(pad_token),
        top_k=top_k,
        max_new_tokens=max_new_tokens,
    )
    return Generation(*result)


@partial(jax.jit, static_argnames=("model", "top_k", "max_new_tokens"), donate_argnames="cache")
def _generate(
    model: Decoder,
    params: Any,
    tokens: Array,
    mask: Array | None,
    cache: CompressedCache,
    key: Array,
    temperature: Array | None,
    top_p: Array | None,
    stop: Array | None,
    pad_token: Array,
    *,
    top_k: int | None,
    max_new_tokens: int,
) -> tuple[Array, Array, CompressedCache]:
    """``temperature is None`` is greedy; ``stop is None`` spares the decode steps their mask."""

    def forward(tokens: Array, cache: CompressedCache, **options: Any) -> DecoderOutput:
        return cast(DecoderOutput, model.apply({"params": params}, tokens, cache=cache, **options))

    def step(carry: tuple[CompressedCache, Array, Array], step_key: Array) -> tuple[Any, tuple[Array, Array]]:
        cache, logits, running = carry
        if temperature is None:
            drawn = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            drawn = sample(logits, step_key, temperature=temperature, top_k=top_k, top_p=top_p)
        token = jnp.where(running, drawn, pad_token)
        # A finished row appends nothing more to its cache. Every emitted token is read, the last one
        # included, so that the cache returned holds the whole text and can be continued.
        out = forward(token[:, None], cache, mask=None if stop is None else running[:, None])
        still_running = running if stop is None else running & ~jnp.any(token[:, None] == stop, axis=1)
        return (out.cache, out.logits[:, -1], still_running), (token, running)

    prefill = forward(tokens, cache, mask=mask, last_only=True)
    running = jnp.ones(tokens.shape[0], dtype=bool)
    (cache, _, _), (generated, was_running) = jax.lax.scan(
        step, (prefill.cache, prefill.logits[:, -1], running), jax.random.split(key, max_new_tokens)
    )
    return generated.T, jnp.sum(was_running, axis=0, dtype=jnp.int32), cache


def _check_options(
    tokens: Array,
    mask: Array | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must not be negative; 0 is greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be in (0, 1]; leave it out to keep every token")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"mask has shape {mask.shape}; it must be that of prompt_tokens, {tokens.shape}")
    if mask is not None and not bool(mask.any(axis=1).all()):
        raise ValueError("every row of mask needs at least one valid token")


def _check_capacity(cache: CompressedCache, tokens: Array, mask: Array | None, max_new_tokens: int) -> None:
    prompt = tokens.shape[1] if mask is None else np.asarray(mask).sum(axis=1)
    needed = int(np.max(np.asarray(cache.length) + prompt)) + max_new_tokens
    if needed > cache.max_length:
        raise ValueError(
            f"the cache holds max_length={cache.max_length} tokens, but its content, the prompt and"
            f" max_new_tokens={max_new_tokens} need {needed}; make it longer or generate fewer tokens"
        )

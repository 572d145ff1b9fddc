"""How a passage is run: the dense reference, the stream through the cache, and the snapshot.

All functions take one passage and are compiled once; nothing loops over tokens in Python.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CompressedCache, recode
from kakeya_jax.eval.score import TokenScores, score
from kakeya_jax.typing import Array, Float, Int

PROTOCOLS = ("stream", "snapshot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What of each passage is run and scored.

    Attributes:
        name: ``"stream"``: every token runs through the cache, so errors propagate through layers and
            time. ``"snapshot"``: the prefix is prefilled clean, its keys and values are coded once, and a
            continuation is teacher-forced over them.
        context: tokens of a passage.
        warmup: first tokens of a stream whose predictions are not scored.
        continuation: last tokens of a snapshot, fed after the cache was coded; the prediction of the first of
            them comes from the clean prefill and is not scored.
        chunk: tokens fed at once.
    """

    name: str
    context: int
    warmup: int
    continuation: int
    chunk: int

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol={self.name!r} must be one of {', '.join(PROTOCOLS)}")
        if self.context < 2:
            raise ValueError(f"context={self.context} must be at least 2")
        if not 1 <= self.chunk <= self.context:
            raise ValueError(f"chunk={self.chunk} must be between 1 and context={self.context}")
        if self.name == "stream" and not 0 <= self.warmup <= self.context - 2:
            raise ValueError(f"warmup={self.warmup} leaves nothing to score of context={self.context}")
        if self.name == "snapshot" and not 2 <= self.continuation < self.context:
            raise ValueError(f"continuation={self.continuation} must be between 2 and context - 1 = {self.context - 1}")

    @classmethod
    def with_defaults(
        cls,
        name: str,
        *,
        context: int,
        warmup: int | None = None,
        continuation: int | None = None,
        chunk: int | None = None,
    ) -> "Protocol":
        """A protocol whose sizes, where they are None, follow from the context.

        Args:
            name: as the attribute.
            context: as the attribute.
            warmup: of a stream; by default 512, or a quarter of a shorter context.
            continuation: of a snapshot; by default 512, or a quarter of a shorter context.
            chunk: by default at most 512.

        Raises:
            ValueError: a size is out of range, or belongs to the other protocol.
        """
        for option, value, owner in (("warmup", warmup, "stream"), ("continuation", continuation, "snapshot")):
            if value is not None and name in PROTOCOLS and name != owner:
                raise ValueError(f"{option}={value} belongs to the {owner} protocol, not to {name}; leave it out")
        return cls(
            name=name,
            context=context,
            warmup=min(512, context // 4) if warmup is None else warmup,
            continuation=min(512, context // 4) if continuation is None else continuation,
            chunk=default_chunk(context) if chunk is None else chunk,
        )

    @property
    def fed(self) -> int:
        """Tokens at the end of a passage that run through the compressed cache."""
        return self.context if self.name == "stream" else self.continuation

    @property
    def unscored(self) -> int:
        """First predictions of the tokens fed that are dropped."""
        return self.warmup if self.name == "stream" else 0

    @property
    def scored(self) -> int:
        """Scored predictions in each passage; the last token fed has no target."""
        return self.fed - 1 - self.unscored


def default_chunk(context: int) -> int:
    """The largest chunk of at most 512 tokens that divides the context, or 256 if all divisors are small.

    Raises:
        ValueError: a context below 2, of which no prediction could be scored.
    """
    if context < 2:
        raise ValueError(f"context={context} must be at least 2")
    largest = max(size for size in range(1, min(context, 512) + 1) if context % size == 0)
    return largest if largest >= min(context, 64) else 256


def reference_log_probabilities(model, params, tokens: Int[Array, " T"]) -> Float[Array, "T V"]:
    """Next-token log-probabilities of the dense model, without any cache; float32, ``4 T V`` bytes."""
    logits, _ = model.apply({"params": params}, tokens[None])
    return jax.nn.log_softmax(logits[0].astype(jnp.float32))


def stream(
    model,
    params,
    cache: CompressedCache,
    tokens: Int[Array, " T"],
    reference: Float[Array, "T V"],
    *,
    chunk: int,
) -> TokenScores:
    """Runs ``tokens`` through the cache in chunks, as a server would; scores every prediction but the last.

    Each chunk is appended to the cache and attends to what the cache holds.

    Args:
        model: the decoder.
        params: its parameters.
        cache: what came before ``tokens``; an empty cache for a whole passage.
        tokens: the tokens to feed.
        reference: the dense model's log-probabilities at the same positions.
        chunk: tokens fed at once; the result depends on it only through rounding.

    Returns:
        Scores ``[T - 1]`` of the predictions of ``tokens[1:]``.
    """
    return stream_with_cache(model, params, cache, tokens, reference, chunk=chunk)[0]


def stream_with_cache(
    model,
    params,
    cache: CompressedCache,
    tokens: Int[Array, " T"],
    reference: Float[Array, "T V"],
    *,
    chunk: int,
) -> tuple[TokenScores, CompressedCache]:
    """``stream``, and the cache as it is in the end."""
    targets = jnp.roll(tokens, -1)  # the last token has no target; its score is dropped below

    def step(cache: CompressedCache, piece: tuple[Array, Array, Array]) -> tuple[CompressedCache, TokenScores]:
        piece_tokens, piece_targets, piece_reference = piece
        logits, cache = model.apply({"params": params}, piece_tokens[None], cache=cache)
        return cache, score(piece_reference, logits[0], piece_targets)

    cache, scores = _scan_chunks(step, cache, (tokens, targets, reference), chunk)
    return jax.tree.map(lambda x: x[:-1], scores), cache


def prefill(model, params, cache: CompressedCache, tokens: Int[Array, " T"], *, chunk: int) -> CompressedCache:
    """Fills a cache with a text, a chunk at a time."""

    def step(cache: CompressedCache, piece: tuple[Array]) -> tuple[CompressedCache, None]:
        _, cache = model.apply({"params": params}, piece[0][None], cache=cache)
        return cache, None

    return _scan_chunks(step, cache, (tokens,), chunk)[0]


def snapshot(
    model,
    params,
    cache: CompressedCache,
    clean: CompressedCache,
    tokens: Int[Array, " T"],
    reference: Float[Array, "T V"],
    *,
    prefix: int,
    chunk: int,
) -> TokenScores:
    """Codes the keys and values of a clean prefill and teacher-forces a continuation over them.

    Args:
        model: the decoder.
        params: its parameters.
        cache: an empty cache.
        clean: the prefill of the tokens before, by ``prefill`` into a cache that codes nothing (``dense_recipe``).
        tokens: the continuation.
        reference: the dense model's log-probabilities at the continuation's positions.
        prefix: tokens in ``clean``.
        chunk: tokens fed at once.

    Returns:
        Scores ``[T - 1]`` of the predictions of ``tokens[1:]``.
    """
    coded = recode(clean, cache, rope=model.config.rope, length=prefix)
    return stream(model, params, coded, tokens, reference, chunk=chunk)


def _scan_chunks(step, carry, arrays: tuple[Array, ...], chunk: int):
    """Scans ``step`` over whole chunks of the leading axis, then takes one step for what is left over."""
    length = len(arrays[0])
    chunk = min(chunk, length)
    whole = length // chunk * chunk
    carry, out = jax.lax.scan(step, carry, jax.tree.map(lambda x: x[:whole].reshape(-1, chunk, *x.shape[1:]), arrays))
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if whole < length:
        carry, rest = step(carry, jax.tree.map(lambda x: x[whole:], arrays))
        out = jax.tree.map(lambda *parts: jnp.concatenate(parts), out, rest)
    return carry, out

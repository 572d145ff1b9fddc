"""A model with a compressed cache as lm-evaluation-harness sees it; needs the extra ``lm-eval``.

Every token of a request, context and continuation, runs through a ``CompressedCache``: each prediction reads what a
decode step at its position would read. Requests are padded to a few lengths, so that few programs are compiled.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from kakeya_jax.cache import CompressedCache, Tables
from kakeya_jax.models.generate import generate
from kakeya_jax.models.tokenizer import Tokenizer
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array, Bool, Int

SHORTEST = 64
"""Tokens that the shortest requests are padded to; longer ones to twice as many, and so on."""

CHUNK = 512
"""Tokens fed at once: logits of no more exist at a time."""

NEW_TOKENS = 256
"""Tokens that are generated where a task names no number."""


class CompressedLM(TemplateLM):
    """A decoder that reads through a compressed cache; give it to ``lm_eval.simple_evaluate(model=...)``."""

    def __init__(
        self,
        model: Any,
        params: Any,
        tokenizer: Tokenizer,
        recipe: Recipe,
        *,
        tables: Tables | None = None,
        max_length: int | None = None,
        batch_size: int = 4,
    ) -> None:
        """Scores with ``model`` through caches of ``recipe``.

        Args:
            model: the decoder.
            params: its parameters.
            tokenizer: its tokenizer.
            recipe: how the cache is coded.
            tables: of a calibrated recipe.
            max_length: tokens of the longest request, what is generated included; longer ones lose their beginning.
                None for what the model is meant for.
            batch_size: requests at a time.

        Raises:
            ValueError: ``max_length`` or ``batch_size`` is out of range.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.max_length = model.config.max_position_embeddings if max_length is None else max_length
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2")
        self.model, self.params, self.recipe = model, params, recipe
        self._tokenizer, self._tables, self._batch_size = tokenizer, tables, batch_size
        self._score = jax.jit(functools.partial(_score, model))

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; also what a text without context begins with."""
        ids = self.model.config.eos_token_ids
        return ids[0] if ids else 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, without special tokens unless asked for."""
        del kwargs
        return self._tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)).tolist()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of ``max_length`` tokens that do not share what they score."""
        del disable_tqdm
        windows, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length - 1, 1):
                windows.append((("", ""), *make_disjoint_window(pair)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += likelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that go on until one of the strings in ``until``, an end token, or ``max_gen_toks``."""
        del disable_tqdm
        return [self._generate(*request.args) for request in requests]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would say it."""
        del kwargs
        whole = [(context + continuation)[-self.max_length :] for _, context, continuation in requests]
        scored = [
            min(len(continuation), len(text) - 1) for (_, _, continuation), text in zip(requests, whole, strict=True)
        ]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for length, members in self._batches([len(text) for text in whole]):
            tokens, mask = _padded([whole[index] for index in members], length, self._batch_size)
            likelihoods, greedy = jax.device_get(self._score(self.params, self._cache(length), tokens, mask))
            for row, index in enumerate(members):
                last = len(whole[index]) - 1
                span = slice(last - scored[index], last)
                found[index] = float(likelihoods[row, span].sum()), bool(greedy[row, span].all())
        return found

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        options = dict(options)
        until = options.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        count = int(options.pop("max_gen_toks", NEW_TOKENS))
        temperature = float(options.pop("temperature", 0.0)) if options.pop("do_sample", False) else 0.0
        if not 1 <= count < self.max_length:
            raise ValueError(f"max_gen_toks={count} must be between 1 and max_length - 1 = {self.max_length - 1}")
        prompt = (self.tok_encode(context) or [self.prefix_token_id])[-(self.max_length - count) :]
        length = self._padded_length(len(prompt))
        tokens, mask = _padded([prompt], length, 1)
        result = generate(
            self.model,
            self.params,
            tokens,
            max_new_tokens=count,
            cache=self._cache(length + count, batch_size=1),
            temperature=temperature,
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            stop_tokens=self.model.config.eos_token_ids,
            mask=mask,
        )
        text = self._tokenizer.decode(np.asarray(result.tokens[0, : int(result.lengths[0])]))
        ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Padded lengths, and which requests have them; at most ``batch_size`` at a time."""
        of_length: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            of_length.setdefault(self._padded_length(length), []).append(index)
        for length, members in sorted(of_length.items()):
            for first in range(0, len(members), self._batch_size):
                yield length, members[first : first + self._batch_size]

    def _padded_length(self, length: int) -> int:
        padded = SHORTEST
        while padded < length:
            padded *= 2
        return max(length, min(padded, self.max_length))

    def _cache(self, length: int, *, batch_size: int | None = None) -> CompressedCache:
        return CompressedCache.init(
            self.model.config,
            self.recipe,
            batch_size=batch_size or self._batch_size,
            max_length=length,
            dtype=self.model.dtype,
            tables=self._tables,
        )


def _padded(texts: Sequence[Sequence[int]], length: int, rows: int) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Texts padded on the right, and rows of one token for a batch that is not full."""
    tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    mask[:, 0] = True
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        mask[row, : len(text)] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


def _score(
    model: Any, params: Any, cache: CompressedCache, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Array, Array]:
    """Log-likelihood of every next token, and whether it is the likeliest: ``[B, T]``; the last column has no token."""
    likelihoods, greedy = [], []
    targets = jnp.roll(tokens, -1, axis=1)
    for first in range(0, tokens.shape[1], CHUNK):
        part = slice(first, first + CHUNK)
        logits, cache = model.apply({"params": params}, tokens[:, part], cache=cache, mask=mask[:, part])
        likely = jax.nn.log_softmax(logits.astype(jnp.float32))
        likelihoods.append(jnp.take_along_axis(likely, targets[:, part, None], axis=-1)[..., 0])
        greedy.append(jnp.argmax(logits, axis=-1) == targets[:, part])
    return jnp.concatenate(likelihoods, axis=1), jnp.concatenate(greedy, axis=1)

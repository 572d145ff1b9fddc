"""The measurement: what a compressed cache does to a model's predictions.

The reference is the dense model without a cache. A candidate is the same model reading a ``CompressedCache``,
the very one that users get: what is scored is attention over packed codes, never over values not coded.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import accounting
from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.calibration.artifact import Calibration, text_hash
from kakeya_jax.calibration.tables import window_note
from kakeya_jax.eval import protocols, statistics
from kakeya_jax.eval.encode_time import encode_seconds
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.gates import NAMED_GATES, NOTHING_CODED, Gates
from kakeya_jax.eval.protocols import Protocol
from kakeya_jax.eval.results import EvalResult, Row, window_warning
from kakeya_jax.eval.score import TokenScores
from kakeya_jax.eval.text import check_vocabulary, cut_passages, passage_count
from kakeya_jax.recipe import Recipe
from kakeya_jax.session_file import SessionSize, session_size
from kakeya_jax.typing import Int

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and what comes next."""

LEAST_SCORED = 20_000
"""Tokens scored for each recipe unless asked otherwise."""


def evaluate(
    model: Any,
    params: Any,
    tokens: Int[np.ndarray, " n"],
    recipes: Sequence[Recipe | str],
    *,
    protocol: str = "stream",
    context: int = 4096,
    passages: int | None = None,
    warmup: int | None = None,
    continuation: int | None = None,
    chunk: int | None = None,
    cache_dtype: Any = None,
    gates: Gates = NAMED_GATES["default"],
    calibration: Calibration | None = None,
    encode_time: bool = True,
    progress: Progress | None = None,
) -> EvalResult:
    """Measures recipes on evenly spaced passages of a text; deterministic.

    Args:
        model: a decoder: ``model.config`` and ``model.apply({"params": params}, tokens, cache=cache)``.
        params: its parameters.
        tokens: the text.
        recipes: what to measure, as recipes, names, or recipe texts.
        protocol: ``"stream"`` or ``"snapshot"`` (see ``Protocol``).
        context: tokens of each passage.
        passages: how many; by default as many as score ``LEAST_SCORED`` tokens, if the text is long enough.
        warmup: unscored first tokens of a stream; by default 512, or a quarter of a shorter context.
        continuation: tokens fed after a snapshot; by default 512, or a quarter of a shorter context.
        chunk: tokens fed at once; by default at most 512. Changes speed and memory, not results.
        cache_dtype: of the tokens kept exact; by default that of the model's activations. Their bytes are
            always counted as bfloat16.
        gates: thresholds of the verdicts.
        calibration: of this model, for codecs that need it.
        encode_time: measure how long encoding takes as well, which compiles every layer's encoder apart.
        progress: told about every step.

    Returns:
        One row for each recipe, in the order given.

    Raises:
        ValueError: text shorter than a context, tokens of another vocabulary, a size out of range or of the other
            protocol, no recipes, or one that does not fit the model.
    """
    progress = progress or (lambda done, total, what: None)
    if not recipes:
        raise ValueError("no recipes to measure; name at least one")
    run = Protocol.with_defaults(protocol, context=context, warmup=warmup, continuation=continuation, chunk=chunk)
    check_vocabulary(tokens, model.config.vocab_size)
    count = passage_count(len(tokens), context, run.scored, LEAST_SCORED) if passages is None else passages
    cut = cut_passages(tokens, context, count)
    texts = jnp.asarray(cut)
    with jax.default_matmul_precision("highest"):  # TF32 on a GPU would hide differences of 1e-4
        candidates = [
            _Candidate.make(model, run, recipe, cache_dtype or model.dtype, calibration) for recipe in recipes
        ]
        scores = _run_all(model, params, texts, candidates, run, progress)
    rows = _rows(candidates, scores, gates, _steps(texts, candidates), progress, encode_time=encode_time)
    warned = [*_coding_warnings(candidates), window_warning(rows), _context_warning(model.config, context)]
    if calibration is not None:
        warned += [*calibration.notes(), *(window_note(calibration, candidate.recipe) for candidate in candidates)]
    if count * run.scored < LEAST_SCORED and passages is None:
        warned.append(f"only {count * run.scored:,} tokens scored: the text holds {count} passages of {context}")
    return EvalResult(
        protocol=protocol,
        context=context,
        warmup=run.unscored,
        passages=count,
        continuation=run.continuation if protocol == "snapshot" else None,
        tokens_scored=count * run.scored,
        reference_ppl=statistics.perplexity(np.asarray(scores[0].reference_nll)),
        gates=str(gates),
        dtype=str(jnp.dtype(model.dtype)),
        cache_dtype=str(jnp.dtype(cache_dtype or model.dtype)),
        rows=rows,
        environment=environment(),
        warnings=tuple(text for text in warned if text),
        text_sha256=text_hash(cut),
    )


@dataclasses.dataclass(kw_only=True)
class _Candidate:
    """A recipe on its way to a row: its empty cache, its compiled passage, and clocks."""

    label: str
    recipe: Recipe
    cache: CompressedCache
    report: accounting.CacheReport
    run: Callable[..., Any]
    entropy_coded: bool = False
    """Whether the cache goes to an entropy-coded file, whose size then counts; ``run`` returns the cache as well."""
    file_sizes: list[SessionSize] = dataclasses.field(default_factory=list)
    compiled: Callable[..., Any] | None = None
    compile_seconds: float = 0.0
    run_seconds: float = 0.0

    @classmethod
    def make(
        cls, model: Any, run: Protocol, recipe: Recipe | str, dtype: Any, calibration: Calibration | None
    ) -> "_Candidate":
        parsed = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
        tables = None if calibration is None else calibration.tables_for(parsed)
        cache = CompressedCache.init(
            model.config, parsed, batch_size=1, max_length=run.context, dtype=dtype, tables=tables
        )
        entropy_coded = all(plan.joint for plan in parsed.plan(model.config.num_layers)) and run.name == "stream"
        if run.name == "stream":
            of_stream = protocols.stream_with_cache if entropy_coded else protocols.stream
            passage = functools.partial(of_stream, model, chunk=run.chunk)
        else:
            prefix = run.context - run.continuation
            passage = functools.partial(protocols.snapshot, model, chunk=run.chunk, prefix=prefix)
        label = recipe if isinstance(recipe, str) else str(recipe)
        report = accounting.cache_report(model.config, parsed, max_length=run.context, tables=tables)
        return cls(label=label, recipe=parsed, cache=cache, report=report, run=passage, entropy_coded=entropy_coded)

    @property
    def codes(self) -> bool:
        """Whether a context does not fit into the exact window."""
        return any(stream.geometry.num_pages for layer in self.cache.layers for stream in (layer.key, layer.value))

    def score(self, *arguments: Any) -> TokenScores:
        """Runs one passage; the first call compiles. Both are timed apart."""
        if self.compiled is None:
            start = time.perf_counter()
            self.compiled = jax.jit(self.run).lower(*arguments).compile()
            self.compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        scores = jax.block_until_ready(self.compiled(*arguments))
        self.run_seconds += time.perf_counter() - start
        if self.entropy_coded:
            scores, cache = scores
            self.file_sizes.append(session_size(cache))
        return jax.device_get(scores)

    def stored(self) -> tuple[float, float, float, float]:
        """Payload and all-in bits per value, bytes per token, compression ratio.

        Of an entropy-coded recipe they are those of the files that its caches would make, exact tokens included; such
        a file has no payload apart.
        """
        report = self.report
        if not self.file_sizes:
            bits = report.payload_bits_per_value, report.all_in_bits_per_value
            return *bits, report.bytes_per_token, report.compression_ratio
        bits = float(np.mean([size.bits_per_value for size in self.file_sizes]))
        # Exact tokens are counted as bfloat16, whatever dtype this measurement holds them in.
        exact = 2 / jnp.dtype(self.cache.layers[0].key.tail.dtype).itemsize
        nbytes = float(np.mean([size.coded_nbytes + exact * size.exact_nbytes for size in self.file_sizes]))
        return bits, bits, nbytes / report.max_length, report.dense_nbytes / nbytes


def _run_all(
    model: Any, params: Any, texts: jax.Array, candidates: list[_Candidate], run: Protocol, progress: Progress
) -> list[TokenScores]:
    """Scores ``[passages, scored]`` of every candidate; passages outside, so each needs one dense forward."""
    reference_of = jax.jit(functools.partial(protocols.reference_log_probabilities, model))
    clean_of = jax.jit(functools.partial(protocols.prefill, model, chunk=run.chunk))
    dense = None
    if run.name == "snapshot":
        dense = CompressedCache.init(
            model.config, dense_recipe(run.context), batch_size=1, max_length=run.context, dtype=jnp.float32
        )
    collected: list[list[TokenScores]] = [[] for _ in candidates]
    total, done = _steps(texts, candidates), 0
    for number, tokens in enumerate(texts, start=1):
        progress(done, total, f"passage {number}/{len(texts)}: dense reference")
        fed = tokens[-run.fed :]
        reference = jax.block_until_ready(reference_of(params, tokens))[-run.fed :]
        clean = () if dense is None else (clean_of(params, dense, tokens[: -run.fed]),)
        done += 1
        for candidate, scores in zip(candidates, collected, strict=True):
            progress(done, total, f"passage {number}/{len(texts)}: {candidate.label}")
            whole = candidate.score(params, candidate.cache, *clean, fed, reference)
            scores.append(jax.tree.map(lambda x: x[run.unscored :], whole))
            done += 1
    return [jax.tree.map(lambda *parts: np.stack(parts), *scores) for scores in collected]


def _steps(texts: jax.Array, candidates: list[_Candidate]) -> int:
    """Passes over a passage, and one timing of the encoder for each candidate."""
    return len(texts) * (len(candidates) + 1) + len(candidates)


def _rows(
    candidates: list[_Candidate],
    scores: list[TokenScores],
    gates: Gates,
    total: int,
    progress: Progress,
    *,
    encode_time: bool,
) -> tuple[Row, ...]:
    rows = []
    for candidate, of_candidate in zip(candidates, scores, strict=True):
        seconds = None
        if encode_time:
            progress(total - len(candidates) + len(rows), total, f"encode time: {candidate.label}")
            seconds = encode_seconds(candidate.cache)
        rows.append(_row(candidate, of_candidate, gates, seconds))
    progress(total, total, "done")
    return tuple(rows)


def _row(candidate: _Candidate, scores: TokenScores, gates: Gates, seconds: float | None) -> Row:
    report = candidate.report
    candidate_nll = np.asarray(scores.candidate_nll, np.float64)
    difference = candidate_nll - np.asarray(scores.reference_nll, np.float64)
    delta_of_passage = difference.mean(axis=1)
    kl = np.asarray(scores.kl, np.float64)
    delta = float(statistics.delta_ppl_percent(difference.mean()))
    top1 = float(scores.agree.mean())
    payload_bits, all_in_bits, bytes_per_token, compression_ratio = candidate.stored()
    return Row(
        recipe=candidate.label,
        recipe_text=candidate.recipe.to_text(),
        payload_bits=payload_bits,
        all_in_bits=all_in_bits,
        bytes_per_token=bytes_per_token,
        compression_ratio=compression_ratio,
        table_bytes=report.table_nbytes,
        sinks=candidate.recipe.sinks,
        recent_min=report.exact_tokens[0],
        recent_max=report.exact_tokens[1],
        ppl=statistics.perplexity(candidate_nll),
        delta_ppl_percent=delta,
        delta_ppl_ci95=statistics.bootstrap_interval(delta_of_passage, statistics.delta_ppl_percent),
        kl_mean=float(kl.mean()),
        kl_ci95=statistics.bootstrap_interval(kl.mean(axis=1)),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1_agreement=top1,
        verdict=gates.verdict(delta, top1) if candidate.codes else NOTHING_CODED,
        encode_seconds=seconds,
        run_seconds=candidate.run_seconds,
        compile_seconds=candidate.compile_seconds,
        passage_delta_nll=tuple(map(float, delta_of_passage)),
        passage_kl=tuple(map(float, kl.mean(axis=1))),
    )


def _context_warning(config: Any, context: int) -> str | None:
    longest = config.max_position_embeddings
    if context <= longest:
        return None
    return f"context {context:,} is longer than the {longest:,} tokens the model is meant for: the dense model errs too"


def _coding_warnings(candidates: list[_Candidate]) -> list[str]:
    """Recipes that leave every token of a context in the exact window: their rows measure nothing."""
    return [
        f"recipe {each.label!r} codes nothing at this context: all tokens stay in its exact window"
        for each in candidates
        if not each.codes
    ]

"""``kakeya doctor --model M --recipe R``: a minute's look at whether a recipe suits a model, before a long run.

Two passages run through the compressed cache, one through each layer's codecs alone; the limits are in
``preflight_limits``. A recipe that fails is answered with others that were measured on the same passages.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kakeya_jax.accounting import CacheReport, report
from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration.tables import serves
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.eval import preflight_limits as limits
from kakeya_jax.eval.activation_check import LayerCheck, check_activations
from kakeya_jax.eval.doctor import FAIL, NOTE, PASS, Check
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.results import EvalResult, Row
from kakeya_jax.eval.run_eval import Inputs, Request, load_inputs, measure
from kakeya_jax.models.locate import DEMO
from kakeya_jax.recipe import Recipe

CONTEXT, PASSAGES = 1024, 2
WARN = "WARN"

ALTERNATIVES = ("klt-2", "klt-4", "kivi-4", "int8")
"""What is tried where a recipe fails, fewest bits first; those of ``klt`` need a calibration of the model."""

Progress = Callable[[float, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found.

    Attributes:
        checks: one line each; the recipe fails if one of them does.
        row: the recipe's row on the passages.
        measured: of which row it is.
        layers: what coding does in each layer.
        risky: indices of layers at risk.
        alternatives: rows of other recipes on the same passages that do well enough, if it fails.
        advice: what to do, in words; empty if it passes.
        seconds: what it took.
    """

    checks: tuple[Check, ...]
    row: Row
    measured: EvalResult
    layers: tuple[LayerCheck, ...]
    risky: tuple[int, ...]
    alternatives: tuple[Row, ...]
    advice: tuple[str, ...]
    seconds: float

    @property
    def status(self) -> str:
        """``FAIL``, ``WARN`` or ``PASS``."""
        found = {check.status for check in self.checks}
        return FAIL if FAIL in found else WARN if WARN in found else PASS


def preflight_request(
    model: str,
    recipe: str,
    *,
    calibration: Path | None = None,
    text: Path | None = None,
    tokens: Path | None = None,
    context: int = CONTEXT,
    passages: int = PASSAGES,
    stress: float | None = None,
    offline: bool = False,
) -> Request:
    """The measurement behind a pre-flight: short passages, protocol ``stream``."""
    return Request(
        model=model,
        recipes=(recipe,),
        text=text,
        tokens=tokens,
        context=context,
        passages=passages,
        calibration=calibration,
        stress=stress,
        encode_time=False,
        offline=offline,
    )


def run_preflight(request: Request, progress: Progress) -> Preflight:
    """Measures and judges one recipe.

    Args:
        request: from ``preflight_request``; its first recipe is judged.
        progress: told about every step.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    start = time.perf_counter()
    recipe = Recipe.parse(request.recipes[0])
    progress(0, 3, "loading")
    # The bundled model has a calibration, which alternatives can use even if the recipe needs none.
    bundled = request.model == DEMO and request.stress is None and request.calibration is None
    inputs = load_inputs(dataclasses.replace(request, recipes=(*request.recipes, "klt-2")) if bundled else request)
    progress(0, 3, f"measuring {request.recipes[0]}")
    result = measure(request, inputs, lambda done, total, what: progress(done / total, 3, what))
    row = result.rows[0]
    progress(1, 3, "layers")
    cache = _empty_cache(inputs, recipe, request.context)
    if not report(cache).coded_values:
        raise ValueError(f"{request.recipes[0]} codes nothing at context={request.context}; use a longer --context")
    layers = tuple(check_activations(inputs.model, inputs.params, cache, inputs.tokens[: request.context]))
    risky = layers_at_risk(layers)
    families = tuple(known_risks(recipe, inputs.model.config, report(cache), layers))
    checks = tuple(judge(row, layers, risky, families, result))
    found: tuple[Row, ...] = ()
    needed = limits.AT_RISK if families else limits.SOUND
    if any(check.status == FAIL for check in checks):
        progress(2, 3, "alternatives")
        found = _measure_alternatives(request, inputs, lambda done, total, what: progress(2 + done / total, 3, what))
    progress(3, 3, "done")
    return Preflight(
        checks=checks,
        row=row,
        measured=result,
        layers=layers,
        risky=risky,
        alternatives=tuple(each for each in found if needed.met(each.kl_mean, each.top1_agreement)),
        advice=tuple(_advice(checks, found, needed, inputs, request)),
        seconds=time.perf_counter() - start,
    )


def judge(
    row: Row, layers: tuple[LayerCheck, ...], risky: tuple[int, ...], families: tuple[str, ...], result: EvalResult
) -> Iterator[Check]:
    """The checks, in the order in which they are shown.

    Args:
        row: the recipe's row.
        layers: of ``check_activations``.
        risky: of ``layers_at_risk``.
        families: of ``known_risks``: with any of them stricter limits hold.
        result: of which ``row`` is.
    """
    broken = sum(layer.non_finite for layer in layers)
    finite = math.isfinite(row.kl_mean) and not broken
    detail = "all keys, values and logits are finite" if finite else f"{broken} keys, values or logits are not finite"
    yield Check(name="finite values", status=PASS if finite else FAIL, detail=detail)
    sound = limits.SOUND.met(row.kl_mean, row.top1_agreement)
    needed = limits.AT_RISK if families else limits.BROKEN
    passes = needed.met(row.kl_mean, row.top1_agreement)
    yield Check(
        name="quality",
        status=FAIL if not passes else PASS if sound else WARN,
        detail=f"KL {row.kl_mean:.2g}, top-1 {100 * row.top1_agreement:.1f} %, dPPL {row.delta_ppl_percent:+.2f} % on "
        f"{result.tokens_scored:,} tokens; fails beyond {needed}"
        + (" (known risk)" if families else f", sound at {limits.SOUND}"),
    )
    for family in families:
        yield Check(name="known risk", status=NOTE if passes else FAIL, detail=family)
    largest = max(layer.largest for layer in layers)
    fits = largest <= limits.FLOAT16_LARGEST
    yield Check(
        name="range",
        status=PASS if fits else FAIL,
        detail=f"largest key or value {largest:.3g}" + ("" if fits else ": beyond float16, which holds scales"),
    )
    outlier = max(max(layer.key_outlier, layer.value_outlier) for layer in layers)
    yield Check(
        name="outlier channels",
        status=NOTE if outlier > limits.OUTLIER_RATIO else PASS,
        detail=f"largest channel {outlier:.1f} times the median one of its head ({_worst_outlier(layers)}); outlier "
        f"from {limits.OUTLIER_RATIO:g}",
    )
    condition = max(layer.query_condition for layer in layers)
    yield Check(
        name="query second moment",
        status=NOTE if condition > limits.WORST_CONDITION else PASS,
        detail=f"condition at most {condition:.1e}",
    )
    named = ", ".join(
        f"{index} (logit error {layers[index].logit_error:.2g}, value error {layers[index].value_error:.2g})"
        for index in risky
    )
    yield Check(
        name="layers at risk",
        status=NOTE if risky else PASS,
        detail=f"layer {named}" if risky else f"none has {limits.LAYER_SHARE:g} times the mean error of all",
    )
    if result.tokens_scored < limits.LEAST_SCORED:
        yield Check(name="text", status=WARN, detail=f"only {result.tokens_scored} tokens scored; use a longer text")


def known_risks(
    recipe: Recipe, config: Any, cache_report: CacheReport, layers: tuple[LayerCheck, ...]
) -> Iterator[str]:
    """What of this model the recipe's methods are known to break on, in words."""
    plain = [codec for codec in _codecs(recipe) if not isinstance(codec, KltConfig | KltStorageConfig)]
    plain = [codec for codec in plain if codec.name != "identity"]
    if not plain:
        return
    names = ", ".join(dict.fromkeys(codec.name for codec in plain))
    outlier = max(max(layer.key_outlier, layer.value_outlier) for layer in layers)
    if outlier > limits.OUTLIER_RATIO:
        yield (
            f"outlier channels {outlier:.0f} times the median: {names} has one scale, or a rotation, for many channels"
        )
    bits = _key_bits(cache_report)
    if getattr(config, "qk_norm", False) and bits <= limits.LOW_KEY_BITS:
        yield f"norms on each head of queries and keys, and {names} with {bits:.2g} bits for keys"
    condition = max(layer.query_condition for layer in layers)
    if any(codec.whiten and codec.max_condition is None for codec in plain) and condition > limits.WORST_CONDITION:
        yield f"whitening without a bound at a condition of {condition:.1e}; max_condition=50 bounds it"


def layers_at_risk(layers: tuple[LayerCheck, ...]) -> tuple[int, ...]:
    """Layers with ``LAYER_SHARE`` times the mean squared logit error, or the mean value error, of all layers."""
    if len(layers) < 2:
        return ()
    errors = np.array([[layer.logit_error**2, layer.value_error] for layer in layers], np.float64)
    mean = np.maximum(errors.mean(axis=0), np.finfo(np.float64).tiny)
    return tuple(int(index) for index in np.flatnonzero((errors > limits.LAYER_SHARE * mean).any(axis=1)))


def to_dict(found: Preflight) -> dict[str, Any]:
    """Plain data for JSON; numbers that are not finite become None."""
    result = dataclasses.replace(found.measured, rows=(found.row, *found.alternatives)).to_dict()
    return {
        "status": found.status,
        "checks": [dataclasses.asdict(check) for check in found.checks],
        "advice": list(found.advice),
        "row": result["rows"][0],
        "alternatives": result["rows"][1:],
        "layers": [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in dataclasses.asdict(layer).items()
            }
            for layer in found.layers
        ],
        "layers_at_risk": list(found.risky),
        "limits": {
            name: dataclasses.asdict(each)
            for name, each in (("sound", limits.SOUND), ("at_risk", limits.AT_RISK), ("broken", limits.BROKEN))
        },
        "seconds": found.seconds,
        "environment": environment(),
    }


def _empty_cache(inputs: Inputs, recipe: Recipe, length: int) -> CompressedCache:
    tables = None
    if inputs.calibration is not None and recipe.needs_calibration:
        tables = inputs.calibration.tables_for(recipe)
    return CompressedCache.init(
        inputs.model.config, recipe, batch_size=1, max_length=length, dtype=jnp.float32, tables=tables
    )


def _measure_alternatives(request: Request, inputs: Inputs, progress: Progress) -> tuple[Row, ...]:
    names = [name for name in ALTERNATIVES if name != request.recipes[0]]
    if inputs.calibration is None:
        names = [name for name in names if not Recipe.named(name).needs_calibration]
    else:
        calibration = inputs.calibration
        names = [
            name
            for name in names
            if not Recipe.named(name).needs_calibration or serves(calibration, Recipe.named(name))
        ]
    return measure(dataclasses.replace(request, recipes=tuple(names)), inputs, progress).rows


def _advice(
    checks: tuple[Check, ...], found: tuple[Row, ...], needed: limits.Limits, inputs: Inputs, request: Request
) -> Iterator[str]:
    if not any(check.status == FAIL for check in checks):
        return
    sound = [row for row in found if needed.met(row.kl_mean, row.top1_agreement)]
    for row in sound:
        yield (
            f"use instead {row.recipe}: {row.all_in_bits:.3f} bits, KL {row.kl_mean:.2g}, top-1 "
            f"{100 * row.top1_agreement:.1f} %, on the same passages"
        )
    if found and not sound:
        yield f"none of {', '.join(row.recipe for row in found)} has {needed} on these passages either"
    if inputs.calibration is None:
        stressed = "" if request.stress is None else f" --stress {request.stress:g}"
        yield (
            f"not measured, because there is no calibration: klt-2; make one by kakeya calibrate {request.model} "
            f"--tokens TRAIN.npy{stressed} --out FILE, then --calibration FILE"
        )


def _codecs(recipe: Recipe) -> tuple[CodecConfig, ...]:
    codecs = [rule.codec for rule in recipe.rules] + ([recipe.boundary_codec] if recipe.boundary else [])
    return tuple(dict.fromkeys(codecs))


def _key_bits(cache_report: CacheReport) -> float:
    """Fewest payload bits of a layer's keys."""
    bits = [
        8 * stream.payload / stream.coded_values
        for stream in cache_report.streams
        if stream.stream in ("key", "both") and stream.coded_values
    ]
    return min(bits, default=16.0)


def _worst_outlier(layers: tuple[LayerCheck, ...]) -> str:
    keys = max(layers, key=lambda each: each.key_outlier)
    values = max(layers, key=lambda each: each.value_outlier)
    if keys.key_outlier >= values.value_outlier:
        return f"keys of layer {keys.layer}"
    return f"values of layer {values.layer}"

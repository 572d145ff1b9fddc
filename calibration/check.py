"""What a calibration says of its model, and how far to trust it: for ``kakeya calibrate --check``."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kakeya_jax.calibration.artifact import Calibration

FLOAT16_LARGEST = 65504.0

DEAD_SHARE = 1e-8
"""Channels whose variance is below this share of their head's mean variance never move."""

HUGE_RATIO = 50.0
"""Channels with a magnitude beyond so many times their own root mean square, or that of their head's median channel."""

WORST_CONDITION = 1e7
"""Beyond it the smallest directions of a float32 matrix are rounding."""

RISK_RATIO = 3.0
"""Streams with so many times the mean loss of all streams carry most of what compression costs."""

UNSTABLE_RATIO = 4.0
"""Tables whose loss on the half of the text that they were not fitted to is so much larger need more text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """An unusual channel: ``ratio`` is its largest magnitude over the root mean square it was compared with."""

    head: int
    channel: int
    ratio: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamCheck:
    """One layer's keys or values; of several heads the worst, unless said otherwise.

    Attributes:
        layer: layer index.
        stream: ``"key"`` or ``"value"``.
        covariance_condition: largest over smallest eigenvalue of the covariance.
        fisher_condition: of the Fisher matrices, for each window.
        query_condition: of the queries' second moment; None for values.
        dead: channels ``(head, channel)`` that never move.
        huge: channels with magnitudes far beyond the others' or their own.
        losses: for each window and head, ``tr(F S)``: twice the loss in nats for each token, were none of it kept.
        largest: largest magnitude; of keys, of a pair of channels that rotates together, at any angle.
        risks: what is unusual, in words.
    """

    layer: int
    stream: str
    covariance_condition: float
    fisher_condition: tuple[float, ...]
    query_condition: float | None
    dead: tuple[tuple[int, int], ...]
    huge: tuple[Channel, ...]
    losses: tuple[tuple[float, ...], ...]
    largest: float
    risks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All streams, and the header.

    Attributes:
        streams: one for each layer's keys and values.
        windows: the exact windows in words.
        loss_spread: for each window, the largest over the smallest loss of all heads, keys and values.
        float16_safe: whether all keys and values fit float16.
        stability: see ``calibration.stability.compare``.
        warnings: one line each.
        header: model, text, versions.
    """

    streams: tuple[StreamCheck, ...]
    windows: tuple[str, ...]
    loss_spread: tuple[float, ...]
    float16_safe: bool
    stability: list[dict[str, Any]]
    warnings: tuple[str, ...]
    header: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite becomes None."""
        return _plain(dataclasses.asdict(self))


def check(calibration: Calibration) -> Report:
    """Looks at every layer and stream of a calibration; cheap."""
    factor = calibration.rope_factor
    windows = len(calibration.exact)
    streams = [
        _check_stream(layer, name, calibration.statistics[layer, name], windows, factor)
        for layer in range(calibration.shape.num_layers)
        for name in ("key", "value")
    ]
    totals = np.array([[sum(losses) for losses in each.losses] for each in streams])
    at_risk = (totals > RISK_RATIO * np.maximum(totals.mean(axis=0), np.finfo(np.float32).tiny)).any(axis=1)
    streams = [
        dataclasses.replace(each, risks=(*(("loss",) if risky else ()), *_risks(each)))
        for each, risky in zip(streams, at_risk, strict=True)
    ]
    by_head = np.array([sum((each.losses[window] for each in streams), ()) for window in range(windows)])
    stability = calibration.about.get("stability", [])
    return Report(
        streams=tuple(streams),
        windows=tuple(map(str, calibration.exact)),
        loss_spread=tuple(_ratio(each.max(), each.min()) for each in by_head),
        float16_safe=all(each.largest <= FLOAT16_LARGEST for each in streams),
        stability=stability,
        warnings=(*calibration.notes(), *_stability_warnings(stability)),
        header={
            "fingerprint": calibration.model,
            **dataclasses.asdict(calibration.shape),
            "fisher": calibration.fisher,
            "fitted_tables": len(calibration.fitted),
            **{name: value for name, value in calibration.about.items() if name != "stability"},
        },
    )


def _check_stream(
    layer: int, name: str, found: Mapping[str, np.ndarray], windows: int, rope_factor: float
) -> StreamCheck:
    covariance, mean = (np.asarray(found[each], np.float64) for each in ("covariance", "mean"))
    fishers = [np.asarray(found[f"fisher.{window}"], np.float64) for window in range(windows)]
    variance = np.einsum("kdd->kd", covariance)
    largest = np.asarray(found["largest"], np.float64)
    dead = np.argwhere(variance <= DEAD_SHARE * variance.mean(axis=1, keepdims=True))
    return StreamCheck(
        layer=layer,
        stream=name,
        covariance_condition=_condition(covariance),
        fisher_condition=tuple(map(_condition, fishers)),
        query_condition=_condition(found["query"]) if name == "key" else None,
        dead=tuple((int(head), int(channel)) for head, channel in dead),
        huge=_huge_channels(largest, np.sqrt(variance + mean**2)),
        losses=tuple(tuple(map(float, np.einsum("kde,ked->k", each, covariance))) for each in fishers),
        largest=float(_pairs(largest).max() * rope_factor if name == "key" else largest.max()),
    )


def _huge_channels(largest: np.ndarray, root_mean_square: np.ndarray) -> tuple[Channel, ...]:
    usual = np.median(root_mean_square, axis=1, keepdims=True)
    ratio = largest / np.maximum(np.minimum(root_mean_square, usual), np.finfo(np.float32).tiny)
    moving = root_mean_square > 0
    return tuple(
        Channel(head=int(head), channel=int(channel), ratio=float(ratio[head, channel]))
        for head, channel in np.argwhere((ratio > HUGE_RATIO) & moving)
    )


def _condition(matrices: np.ndarray) -> float:
    """The largest over heads; infinite if an eigenvalue is not positive."""
    values = np.linalg.eigvalsh(np.asarray(matrices, np.float64))
    return max(_ratio(head[-1], head[0]) for head in values)


def _ratio(largest: float, smallest: float) -> float:
    return float(largest / smallest) if smallest > 0 else float("inf")


def _pairs(largest: np.ndarray) -> np.ndarray:
    """The length of two channels that rotates into each other, at most."""
    half = largest.shape[1] // 2
    return np.hypot(largest[:, :half], largest[:, half:])


def _risks(each: StreamCheck) -> tuple[str, ...]:
    found = {
        "range": each.largest > FLOAT16_LARGEST,
        "dead": bool(each.dead),
        "huge": bool(each.huge),
        "condition": each.covariance_condition > WORST_CONDITION,
    }
    return tuple(name for name, applies in found.items() if applies)


def _stability_warnings(stability: list[dict[str, Any]]) -> tuple[str, ...]:
    worst = max((row["ratio"] for row in stability), default=1.0)
    if worst <= UNSTABLE_RATIO:
        return ()
    return (
        f"tables fitted on half of the text have {worst:.1f} times the expected loss on the other half: more passages "
        "or samples would make better tables",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Calibrations of several texts as one: exact, because every mean is stored with how many vectors it is of."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kakeya_jax.calibration import stability
from kakeya_jax.calibration.artifact import Calibration, LayerStream

Named = Mapping[LayerStream, Mapping[str, np.ndarray]]
"""``Calibration.statistics``."""


def merge_calibrations(parts: Sequence[Calibration]) -> Calibration:
    """What calibrating on all their texts together would have given, to rounding.

    Matrices that were made without a backward pass are averaged, which is as good but not the same.

    Raises:
        ValueError: fewer than two, of different models or windows, of the same text, made in different ways, or with
            tables that belong to one codec (fitted to a whole text, which two fits do not add up to).
    """
    if len(parts) < 2:
        raise ValueError("merging takes at least two calibrations")
    first = parts[0]
    for other in parts[1:]:
        _check_mergeable(first, other)
    seen = [window for part in parts for window in part.corpus]
    if len(set(seen)) < len(seen) and any(
        set(a.corpus) & set(b.corpus) for i, a in enumerate(parts) for b in parts[:i]
    ):
        raise ValueError("calibrations to merge were fitted on the same text; each part of a text may count once")
    rest = functools.reduce(merge_statistics, [part.statistics for part in parts[1:]])
    common = {
        name: value for name, value in first.about.items() if all(part.about.get(name) == value for part in parts)
    }
    sums = {name: sum(part.about.get(name, 0) for part in parts) for name in ("tokens", "passages")}
    return Calibration(
        statistics=merge_statistics(first.statistics, rest),
        fitted={},
        exact=first.exact,
        rope_frequencies=first.rope_frequencies,
        rope_factor=first.rope_factor,
        shape=first.shape,
        model=first.model,
        corpus=tuple(seen),
        fisher=first.fisher,
        about={
            **common,
            **sums,
            "stability": stability.compare(first.statistics, rest, first.exact, first.rope_frequencies),
            "merged": [part.about for part in parts],
        },
    )


def merge_statistics(first: Named, second: Named) -> dict[LayerStream, dict[str, np.ndarray]]:
    """The statistics of both texts (Chan, Golub and LeVeque, "Updating formulae", 1979), in float64 on the host."""
    merged: dict[LayerStream, dict[str, np.ndarray]] = {}
    for where, a in first.items():
        b = second[where]
        if where[1] == "both":
            layer = where[0]
            means = [
                np.concatenate([part[layer, name]["mean"] for name in ("key", "value")]) for part in (first, second)
            ]
            counts = [part[layer, "key"]["count"] for part in (first, second)]
            covariance = _covariance(a, b, [mean.reshape(1, -1) for mean in means], counts)
            merged[where] = {"covariance": covariance[0].astype(np.float32)}
        else:
            merged[where] = {name: each.astype(np.float32) for name, each in _merge_stream(a, b).items()}
    return merged


def _merge_stream(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    share = _share(a["count"], b["count"])
    mean_a, mean_b = (np.asarray(part["mean"], np.float64) for part in (a, b))
    merged: dict[str, np.ndarray] = {
        "mean": mean_a + share * (mean_b - mean_a),
        "covariance": _covariance(a, b, [mean_a, mean_b], [a["count"], b["count"]]),
        "largest": np.maximum(a["largest"], b["largest"]),
        "count": a["count"] + b["count"],
    }
    for name in a:
        if f"{name}.count" in a:
            counts = a[f"{name}.count"], b[f"{name}.count"]
            merged[name] = (1 - _share(*counts)) * a[name] + _share(*counts) * b[name]
            merged[f"{name}.count"] = counts[0] + counts[1]
    return merged


def _covariance(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], means: Sequence[np.ndarray], counts: Sequence[Any]
) -> np.ndarray:
    """``[K, D, D]`` about the common mean; the joint one has one head and no axis for it."""
    share = _share(*counts)
    gap = np.asarray(means[1], np.float64) - means[0]
    within = (1 - share) * np.asarray(a["covariance"], np.float64) + share * b["covariance"]
    return within + share * (1 - share) * gap[:, :, None] * gap[:, None, :]


def _share(first: Any, second: Any) -> float:
    """Which part of all vectors the second has."""
    return float(second) / max(float(first) + float(second), 1.0)


def _check_mergeable(first: Calibration, other: Calibration) -> None:
    differing = [
        what
        for what, same in (
            ("models", (first.model, first.shape) == (other.model, other.shape)),
            ("exact windows", first.exact == other.exact),
            ("ways of making Fisher matrices", first.fisher == other.fisher),
            ("kinds of statistics (one with --no-joint)", set(first.statistics) == set(other.statistics)),
        )
        if not same
    ]
    if differing:
        raise ValueError(f"calibrations to merge are of different {' and '.join(differing)}; calibrate them alike")
    if first.fitted or other.fitted:
        raise ValueError(
            "calibrations with tables of single codecs (--recipe) do not merge; calibrate on the whole text at once"
        )

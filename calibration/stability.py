"""How much calibrated tables owe to the text they were fitted on: fitted on one half, judged on the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kakeya_jax import klt_layout
from kakeya_jax.calibration import klt_fit
from kakeya_jax.calibration.artifact import ExactTokens, LayerStream
from kakeya_jax.calibration.fisher_root import FISHER_RIDGE
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.typing import StreamName

CONFIGS = (KltConfig(bits=2.0), KltConfig(bits=3.0))
"""What is fitted to see how the fit moves."""

RIDGES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Ridges of the Fisher matrix that are compared; ``FISHER_RIDGE`` is the one in use."""

_STREAMS: tuple[StreamName, ...] = ("key", "value")

_Named = Mapping[LayerStream, Mapping[str, np.ndarray]]
_Tables = dict[LayerStream, dict[str, np.ndarray]]
_Moments = Mapping[LayerStream, Sequence[np.ndarray]]


def compare(
    first: _Named, second: _Named, exact: Sequence[ExactTokens], rope_frequencies: Sequence[float]
) -> list[dict[str, Any]]:
    """For every window and budget, the loss expected on either half of tables fitted on it, and on the other one.

    Args:
        first: statistics of one half of a text, and
        second: of the other.
        exact: the windows of their Fisher matrices.
        rope_frequencies: radians per position.

    Returns:
        Plain data: ``window``, ``bits``, ``own`` and ``other`` (nats, the mean of both directions), and ``ratio`` of
        ``other`` to ``own``: 1 if the halves agree. ``ridges`` says for each of ``RIDGES`` what tables fitted with it
        would lose on the other half, by that half's Fisher matrix as it is: a list of ``ridge`` and ``other``.
    """
    halves = (first, second)
    frequencies = np.asarray(rope_frequencies)
    rows = []
    for window, tokens in enumerate(exact):
        moments = [_all_moments(half, window, frequencies, FISHER_RIDGE) for half in halves]
        judges = [_all_moments(half, window, frequencies, 0.0) for half in halves]
        maps = {ridge: [_maps(half, window, frequencies, ridge) for half in halves] for ridge in RIDGES}
        for config in CONFIGS:
            tables = {ridge: [_with_widths(config, each) for each in found] for ridge, found in maps.items()}
            in_use = tables[FISHER_RIDGE]
            own, other = _mean_loss(config, in_use, moments), _mean_loss(config, in_use, moments[::-1])
            ratio = other / own if own else 1.0  # nothing is lost where nothing is coded
            ridges = [
                {"ridge": ridge, "other": _mean_loss(config, found, judges[::-1])} for ridge, found in tables.items()
            ]
            rows.append(
                {
                    "window": str(tokens),
                    "bits": config.bits,
                    "own": own,
                    "other": other,
                    "ratio": ratio,
                    "ridges": ridges,
                }
            )
    return rows


def expected_loss(config: KltConfig, tables: _Tables, moments: _Moments) -> float:
    """Half the summed loss in nats that ``tables`` would have on vectors of these moments.

    On the moments that they were fitted to, this is ``klt_fit.predicted_kl``. Elsewhere coordinates are neither
    uncorrelated nor of unit variance, and their errors do not add up as squares.

    Args:
        config: of the codec.
        tables: of every stream.
        moments: of every stream; see ``moments_as_coded``.
    """
    total = 0.0
    for where, table in tables.items():
        mean, covariance, fisher = moments[where]
        stream: StreamName = "key" if where[1] == "key" else "value"
        dim = mean.shape[1]
        width = np.repeat(np.asarray(table["widths"]), dim // table["widths"].shape[1], axis=1)
        shrink, noise = _errors_of(width, config.quantizer)
        gap = mean - np.asarray(table["mean"], np.float64)
        between = gap[:, :, None] * gap[:, None, :]
        if config.form == "fast" and stream == "key":
            between = klt_fit.second_moment_over_page(between, table["rope_frequencies"], config.block_size)
        second = covariance + between
        analysis, synthesis = (np.asarray(table[name], np.float64) for name in ("analysis", "synthesis"))
        spread = np.swapaxes(analysis, 1, 2) @ second @ analysis
        cost = synthesis @ fisher @ np.swapaxes(synthesis, 1, 2)
        independent = np.sum(np.einsum("kee->ke", spread) * np.einsum("kee->ke", cost) * noise)
        coherent = np.sum(spread * cost * shrink[:, :, None] * shrink[:, None, :])
        total += 0.5 * float(independent + klt_fit.COHERENCE[stream, config.page_mean] * coherent)
    return total


def _mean_loss(config: KltConfig, tables: Sequence[_Tables], moments: Sequence[_Moments]) -> float:
    return float(np.mean([expected_loss(config, *each) for each in zip(tables, moments, strict=True)]))


def _maps(half: _Named, window: int, frequencies: np.ndarray, ridge: float) -> _Tables:
    """Tables without widths: the same for all of ``CONFIGS``, which differ in their budget alone."""
    return {
        where: klt_fit.coordinates(
            CONFIGS[0], name, found["mean"], found["covariance"], found[f"fisher.{window}"], frequencies, ridge=ridge
        )
        for name in _STREAMS
        for where, found in half.items()
        if where[1] == name
    }


def _with_widths(config: KltConfig, maps: _Tables) -> _Tables:
    streams: list[tuple[StreamName, np.ndarray]] = [
        ("key" if where[1] == "key" else "value", table["variances"]) for where, table in maps.items()
    ]
    widths = klt_fit.layouts(config, streams)
    return {where: {**table, "widths": each} for (where, table), each in zip(maps.items(), widths, strict=True)}


def _all_moments(
    half: _Named, window: int, frequencies: np.ndarray, ridge: float
) -> dict[LayerStream, tuple[np.ndarray, ...]]:
    return {
        where: moments_as_coded(
            where[1], found["mean"], found["covariance"], found[f"fisher.{window}"], frequencies, ridge=ridge
        )
        for where, found in half.items()
        if where[1] in _STREAMS
    }


def moments_as_coded(
    stream: str,
    mean: np.ndarray,
    covariance: np.ndarray,
    fisher: np.ndarray,
    frequencies: np.ndarray,
    *,
    ridge: float = FISHER_RIDGE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance and Fisher matrix of what the fast form codes, the latter two averaged over a page's rotations.

    In float64, with ``ridge`` on the Fisher matrix as the fit adds it. The mean is that of keys before their rotation.
    """
    mean, covariance, fisher = (np.asarray(each, np.float64) for each in (mean, covariance, fisher))
    if stream == "key":
        page = CONFIGS[0].block_size
        covariance = klt_fit.second_moment_over_page(covariance, frequencies, page)
        fisher = klt_fit.second_moment_over_page(fisher, frequencies, page)
    return mean, covariance, fisher * (1.0 + ridge * np.eye(fisher.shape[1]))


def _errors_of(widths: np.ndarray, quantizer: klt_layout.Quantizer) -> tuple[np.ndarray, np.ndarray]:
    """Of a unit coordinate at each width: the part that decoding takes away, and the variance it adds."""
    shrink, noise = np.ones(widths.shape), np.zeros(widths.shape)
    for width in np.unique(widths):
        if width:
            kept = 1.0 - klt_layout.distortion(int(width), quantizer)
            shrink[widths == width] = 1.0 - klt_layout.decoder_gain(int(width), quantizer) * kept
            noise[widths == width] = klt_layout.loss(int(width), 0.0, quantizer)
    return shrink, noise

"""From second moments to the tables of ``klt-storage``: joint coordinates, and one bit budget for all layers.

All on the host in float64: the matrices are small, and nothing here depends on the number of tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kakeya_jax.calibration.fisher_root import LEAST_SHARE, fisher_root
from kakeya_jax.calibration.klt_fit import COHERENCE
from kakeya_jax.codecs.klt_storage import (
    KltStorageConfig,
    low_bits_of,
    model_frequencies,
    page_mean_model_frequencies,
)
from kakeya_jax.uniform_quantizer import gaussian_statistics

STEPS = np.append(np.geomspace(1 / 256, 3.0, 95), np.inf)
"""Quantiser steps to choose from, in standard deviations, 7 % apart; the last drops a channel."""

_DEAD_LAYER = 1e-30
"""Nats for each squared error of a layer that no prediction depends on: any other layer's bits are worth more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerMoments:
    """What is known of one layer's vectors; ``K`` heads of dimension ``D``, ``C = 2 K D``.

    Attributes:
        mean_key: ``[K, D]`` of keys before their rotary embedding, and
        mean_value: ``[K, D]`` of values.
        covariance: ``[C, C]`` of all heads' keys, then all heads' values, as one vector.
        fisher_key: ``[K, D, D]`` of keys before their rotary embedding: second moment of the gradients of the
            log-likelihood of sampled labels, and
        fisher_value: ``[K, D, D]`` of values.
    """

    mean_key: np.ndarray
    mean_value: np.ndarray
    covariance: np.ndarray
    fisher_key: np.ndarray
    fisher_value: np.ndarray


LayerTables = dict[str, np.ndarray]
"""The tables of ``KltStorageConfig`` for one layer."""


def fit_storage(
    config: KltStorageConfig, layers: Sequence[LayerMoments], *, bits: float | None = None
) -> list[LayerTables]:
    """Tables of every layer, with one budget for all of them.

    With ``F = H H^T`` the block-diagonal Fisher matrix of all heads and ``S`` their covariance, coordinates are
    ``y = (x - mean) H U``, ``U`` the eigenvectors of ``H^T S H``: uncorrelated, with eigenvalues
    ``lambda``, and half the squared error is the expected loss in nats. Each channel takes the step that minimises
    ``lambda (independent + kappa coherent) + mu entropy`` of a Gaussian; ``mu`` is the same for all channels of all
    layers and found by bisection.

    Args:
        config: of the codec.
        layers: one entry for each layer.
        bits: entropy per value of the symbols under the Gaussian model, page means not counted; ``config.bits`` by
            default. ``storage_counts`` tells what a text really takes.

    Raises:
        ValueError: a matrix is not finite.
    """
    return fit_coordinates(config, [joint_coordinates(layer) for layer in layers], bits=bits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointCoordinates:
    """``y = (x - mean) forward``, ``x = mean + y backward``.

    Attributes:
        mean: ``[C]``.
        forward: ``[C, C]``, and
        backward: ``[C, C]``, its inverse.
        variances: ``[C]`` of ``y``, falling; half the squared error of ``y`` is the expected loss in nats.
        key_share: ``[C]`` share of each channel's direction that lies in keys.
    """

    mean: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    variances: np.ndarray
    key_share: np.ndarray


def fit_coordinates(
    config: KltStorageConfig, layers: Sequence[JointCoordinates], *, bits: float | None = None
) -> list[LayerTables]:
    """``fit_storage`` from the coordinates of every layer, which do not depend on the budget."""
    lambdas = np.concatenate([layer.variances for layer in layers])
    shares = np.concatenate([layer.key_share for layer in layers])
    chosen = _allocate(lambdas, shares, config.bits if bits is None else bits, page_mean=config.page_mean)
    ends = np.cumsum([len(layer.variances) for layer in layers])
    return [
        _tables(config, layer, STEPS[index]) for layer, index in zip(layers, np.split(chosen, ends[:-1]), strict=True)
    ]


def joint_coordinates(layer: LayerMoments) -> JointCoordinates:
    """The coordinates of one layer; see ``fit_storage``.

    Raises:
        ValueError: a matrix is not finite.
    """
    arrays = {field.name: np.asarray(getattr(layer, field.name), np.float64) for field in dataclasses.fields(layer)}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"klt-storage: the calibrated {name} is not finite; calibrate again")
    half, inverse_half, level = fisher_root(np.concatenate([arrays["fisher_key"], arrays["fisher_value"]]))
    covariance = 0.5 * (arrays["covariance"] + arrays["covariance"].T)
    variances, axes = np.linalg.eigh(half.T @ covariance @ half)
    variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    level = level or _DEAD_LAYER
    return JointCoordinates(
        mean=np.concatenate([arrays["mean_key"].reshape(-1), arrays["mean_value"].reshape(-1)]),
        forward=half @ axes * np.sqrt(level),
        backward=axes.T @ inverse_half / np.sqrt(level),
        variances=variances * level,
        key_share=np.sum(axes[: len(axes) // 2] ** 2, axis=0),
    )


def _allocate(variances: np.ndarray, key_share: np.ndarray, bits: float, *, page_mean: bool) -> np.ndarray:
    """Index into ``STEPS`` for every channel, at a mean entropy of at most ``bits``."""
    statistics = gaussian_statistics(STEPS)
    of_key, of_value = COHERENCE["key", page_mean], COHERENCE["value", page_mean]
    kappa = of_key * key_share + of_value * (1.0 - key_share)
    losses = variances[:, None] * (statistics.independent + kappa[:, None] * statistics.coherent)
    largest = max(float(losses.max()), np.finfo(np.float64).tiny)
    low, high = np.log(largest) - 60.0, np.log(largest) + 5.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        spent = statistics.bits[np.argmin(losses + np.exp(middle) * statistics.bits, axis=1)].mean()
        low, high = (middle, high) if spent > bits else (low, middle)
    return np.argmin(losses + np.exp(high) * statistics.bits, axis=1)


def _tables(config: KltStorageConfig, coordinates: JointCoordinates, steps: np.ndarray) -> LayerTables:
    order = np.argsort(steps, kind="stable")  # the finest first, dropped channels last
    kept = int(np.isfinite(steps).sum())
    steps = steps[order[:kept]]
    variances = coordinates.variances
    least = max(float(variances[0]) * LEAST_SHARE, np.finfo(np.float32).tiny)
    deviations = np.sqrt(np.maximum(variances, least))[order]
    tables = {
        "mean": coordinates.mean,
        "analysis": coordinates.forward[:, order] / deviations,
        "synthesis": coordinates.backward[order] * deviations[:, None],
        "steps": steps,
        "gains": gaussian_statistics(np.append(steps, np.inf)).gain[:kept],  # none may be kept
    }
    tables = {name: table.astype(np.float32) for name, table in tables.items()}
    tables["low_bits"] = low_bits_of(steps)
    tables["frequencies"] = model_frequencies(steps)
    if config.page_mean:
        tables["page_mean_frequencies"] = page_mean_model_frequencies(len(variances))
    return tables

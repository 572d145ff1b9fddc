"""The Riemannian codec in numpy: directions by exhaustive search."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kakeya_jax.codecs.riemannian import RiemannianCode, RiemannianConfig, normal_quantiles
from kakeya_jax.directions import direction_table
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.lloyd_max import gaussian_levels


def encode(blocks: np.ndarray, config: RiemannianConfig, tables: Mapping[str, Any]) -> RiemannianCode:
    """The code of ``blocks`` ``[..., n, d]``."""
    mean = None
    if config.subtract_mean:
        mean = blocks.mean(axis=-2).astype(np.float16)
        blocks = blocks - mean.astype(np.float32)[..., None, :]
    projections = blocks.reshape(*blocks.shape[:-1], -1, 2) @ direction_table(2, config.direction_bits).T
    index = np.abs(projections).argmax(axis=-1)
    magnitude = np.take_along_axis(projections, index[..., None], axis=-1)[..., 0]
    if config.magnitude == "float16":
        magnitudes = magnitude.astype(np.float16)
    else:
        levels = _levels(config, tables)
        boundaries = (levels[1:] + levels[:-1]) / 2
        units = magnitude / np.asarray(tables["scales"], np.float32)
        magnitudes = pack(np.searchsorted(boundaries, units), config.magnitude_bits)
    return RiemannianCode(
        directions=pack(index, config.direction_bits),  # pyright: ignore[reportArgumentType]
        magnitudes=magnitudes,  # pyright: ignore[reportArgumentType]
        mean=mean,  # pyright: ignore[reportArgumentType]
    )


def decode(code: RiemannianCode, config: RiemannianConfig, tables: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    count = head_dim // 2
    index = unpack(np.asarray(code.directions), config.direction_bits, count)
    if config.magnitude == "float16":
        magnitude = np.asarray(code.magnitudes, np.float32)
    else:
        level_index = unpack(np.asarray(code.magnitudes), config.magnitude_bits, count)
        magnitude = _levels(config, tables)[level_index] * np.asarray(tables["scales"], np.float32)
    groups = magnitude[..., None] * direction_table(2, config.direction_bits)[index]
    x = groups.reshape(*groups.shape[:-2], -1)
    return x if code.mean is None else x + np.asarray(code.mean, np.float32)[..., None, :]


def _levels(config: RiemannianConfig, tables: Mapping[str, Any]) -> np.ndarray:
    if config.centroids in ("calibrated", "pooled"):
        return np.asarray(tables["centroids"], np.float32)
    bits = config.magnitude_bits
    return normal_quantiles(bits) if config.centroids == "quantile" else gaussian_levels(bits)

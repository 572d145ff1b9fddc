"""The Besicovitch product codec in numpy: directions by exhaustive search."""

import numpy as np

from kakeya_jax.codecs.besicovitch import BesicovitchCode, BesicovitchConfig
from kakeya_jax.directions import direction_table, signed_magnitude_levels
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.numeric import EPS
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: BesicovitchConfig, stream: StreamName = "key") -> BesicovitchCode:
    """The code of ``blocks`` ``[..., n, d]``."""
    del stream
    mean = None
    if config.subtract_mean:
        mean = blocks.mean(axis=-2).astype(np.float16)
        blocks = blocks - mean.astype(np.float32)[..., None, :]
    groups = blocks.reshape(*blocks.shape[:-1], -1, config.group_size)
    projections = groups @ direction_table(config.group_size, config.direction_bits).T
    index = np.abs(projections).argmax(axis=-1)
    magnitude = np.take_along_axis(projections, index[..., None], axis=-1)[..., 0]
    scale = None
    if config.magnitude == "float16":
        magnitudes = magnitude.astype(np.float16)
    else:
        level_index, scale = _quantize(magnitude, _levels(config, blocks.shape[-1]), config.magnitude_levels)
        magnitudes = pack(level_index, config.magnitude_bits)
    return BesicovitchCode(
        directions=pack(index, config.direction_bits),  # pyright: ignore[reportArgumentType]
        magnitudes=magnitudes,  # pyright: ignore[reportArgumentType]
        scale=scale,  # pyright: ignore[reportArgumentType]
        mean=mean,  # pyright: ignore[reportArgumentType]
    )


def decode(code: BesicovitchCode, config: BesicovitchConfig, head_dim: int, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    del stream
    count = head_dim // config.group_size
    directions = direction_table(config.group_size, config.direction_bits)
    index = unpack(np.asarray(code.directions), config.direction_bits, count)
    if code.scale is None:
        magnitude = np.asarray(code.magnitudes, np.float32)
    else:
        level_index = unpack(np.asarray(code.magnitudes), config.magnitude_bits, count)
        magnitude = _levels(config, head_dim)[level_index] * np.asarray(code.scale, np.float32)[..., None]
    groups = magnitude[..., None] * directions[index]
    x = groups.reshape(*groups.shape[:-2], -1)
    return x if code.mean is None else x + np.asarray(code.mean, np.float32)[..., None, :]


def _levels(config: BesicovitchConfig, head_dim: int) -> np.ndarray:
    if config.magnitude_levels == "reference":
        return gaussian_levels(config.magnitude_bits)
    count = head_dim // config.group_size
    return signed_magnitude_levels(config.group_size, config.direction_bits, config.magnitude_bits, count)


def _quantize(magnitude: np.ndarray, levels: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    boundaries = (levels[1:] + levels[:-1]) / 2
    if rule == "reference":
        scale = np.maximum(np.abs(magnitude).max(axis=-1), np.float32(1e-12))
        return np.searchsorted(boundaries, magnitude / scale[..., None]), scale.astype(np.float16)
    rms = np.sqrt(np.mean(magnitude**2, axis=-1, keepdims=True))
    index = np.searchsorted(boundaries, magnitude / np.maximum(rms, np.float32(EPS)))
    level = levels[index]
    scale = (magnitude * level).sum(axis=-1) / (level * level).sum(axis=-1)
    return index, np.where(rms[..., 0] > EPS, scale, 0).astype(np.float16)

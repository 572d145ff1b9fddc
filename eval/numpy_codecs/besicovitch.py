"""The Besicovitch product codec in numpy: directions by exhaustive search."""

import itertools

import numpy as np

from kakeya_jax.codecs.besicovitch import BesicovitchCode, BesicovitchConfig
from kakeya_jax.directions import direction_table, signed_magnitude_levels
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.numeric import EPS
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: BesicovitchConfig, stream: StreamName = "key") -> BesicovitchCode:
    """The code of ``blocks`` ``[..., n, d]``."""
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
        if _in_tiles(config, stream, *index.shape[-2:]):
            pairs = _tiled(index + level_index * 2**config.direction_bits, _width(config))
            return BesicovitchCode(directions=None, magnitudes=None, pairs=pairs, scale=scale, mean=mean)  # pyright: ignore[reportArgumentType]
        magnitudes = pack(level_index, config.magnitude_bits)
    return BesicovitchCode(
        directions=pack(index, config.direction_bits),  # pyright: ignore[reportArgumentType]
        pairs=None,
        magnitudes=magnitudes,  # pyright: ignore[reportArgumentType]
        scale=scale,  # pyright: ignore[reportArgumentType]
        mean=mean,  # pyright: ignore[reportArgumentType]
    )


def decode(code: BesicovitchCode, config: BesicovitchConfig, head_dim: int, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    del stream  # the code says how it is packed
    count = head_dim // config.group_size
    directions, scale = direction_table(config.group_size, config.direction_bits), np.asarray(code.scale)
    if code.pairs is not None:
        pairs = _untiled(np.asarray(code.pairs), _width(config), count)
        index, level_index = pairs % 2**config.direction_bits, pairs // 2**config.direction_bits
        magnitude = _levels(config, head_dim)[level_index] * scale.astype(np.float32)[..., None]
    elif code.scale is None:
        index = unpack(np.asarray(code.directions), config.direction_bits, count)
        magnitude = np.asarray(code.magnitudes, np.float32)
    else:
        index = unpack(np.asarray(code.directions), config.direction_bits, count)
        level_index = unpack(np.asarray(code.magnitudes), config.magnitude_bits, count)
        magnitude = _levels(config, head_dim)[level_index] * scale.astype(np.float32)[..., None]
    groups = magnitude[..., None] * directions[index]
    x = groups.reshape(*groups.shape[:-2], -1)
    return x if code.mean is None else x + np.asarray(code.mean, np.float32)[..., None, :]


def _width(config: BesicovitchConfig) -> int:
    return config.direction_bits + config.magnitude_bits


def _in_tiles(config: BesicovitchConfig, stream: StreamName, n: int, groups: int) -> bool:
    whole = n % 64 == 0 and groups % 16 == 0
    return stream == "value" and config.group_size == 2 and _width(config) <= 8 and whole


def _places(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Which token and which pair of a tile the codes of blocks, lanes and fields are of."""
    block, lane, field = np.ogrid[: groups // 16, :32, :32]
    token = 16 * (lane % 4) + 4 * (field // 8) + 2 * (field // 2 % 2) + field // 4 % 2
    return token, 16 * block + 8 * (field % 2) + lane // 4


def _tiled(codes: np.ndarray, width: int) -> np.ndarray:
    """``[..., n, G]`` as ``[..., n / 64, bytes]``: four, two and one words of all lanes side by side."""
    tiles = codes.reshape(*codes.shape[:-2], -1, 64, codes.shape[-1])
    token, pair = _places(codes.shape[-1])
    words = pack(tiles[..., token, pair], width).reshape(*tiles.shape[:-2], -1, 32, width, 4)
    parts = [words[..., first:stop, :] for first, stop in _parts(width)]
    flat = [part.reshape(*part.shape[:-3], -1) for part in parts]
    return np.concatenate(flat, axis=-1).reshape(*tiles.shape[:-2], -1)


def _untiled(packed: np.ndarray, width: int, groups: int) -> np.ndarray:
    blocks = packed.reshape(*packed.shape[:-1], groups // 16, 32 * width * 4)
    parts = [blocks[..., 128 * first : 128 * stop].reshape(*blocks.shape[:-1], 32, -1) for first, stop in _parts(width)]
    codes = np.zeros((*packed.shape[:-1], 64, groups), np.int32)
    token, pair = _places(groups)
    codes[..., token, pair] = unpack(np.concatenate(parts, axis=-1), width, 32)
    return codes.reshape(*packed.shape[:-2], -1, groups)


def _parts(width: int) -> list[tuple[int, int]]:
    """Fours, a two and a one that make ``width``."""
    edges = [4 * each for each in range(width // 4 + 1)]
    edges += [edges[-1] + 2] if width % 4 >= 2 else []
    edges += [width] if width % 2 else []
    return list(itertools.pairwise(edges))


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

"""int8 for each token or group of channels and int4 in groups of channels, in numpy."""

import numpy as np

from kakeya_jax.codecs.integer import Int4Config, Int8Config, IntegerCode
from kakeya_jax.eval.numpy_codecs.affine import quantize_affine, quantize_symmetric
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: Int8Config | Int4Config, stream: StreamName = "key") -> IntegerCode:
    """The code of ``blocks`` ``[..., n, d]``."""
    bits, group_size, affine = _format(config, blocks.shape[-1])
    groups = blocks.reshape(*blocks.shape[:-1], -1, group_size)
    minimum = None
    if affine:
        codes, scale, minimum = quantize_affine(groups, bits, axis=-1)
        minimum = minimum[..., 0]
    else:
        codes, scale = quantize_symmetric(groups, bits, axis=-1)
    rows = (codes.reshape(blocks.shape).astype(np.int32) - _zero(bits, affine)) % 2**bits  # two's complement
    if _along_tokens(config, stream, *blocks.shape[-2:]):
        rows = np.swapaxes(rows, -1, -2)
    elif bits == 4:
        rows = _lanes_first(rows)
    packed = pack(_halves_interleaved(rows) if bits == 4 else rows, bits)
    return IntegerCode(codes=packed, scale=scale[..., 0], minimum=minimum)  # pyright: ignore[reportArgumentType]


def decode(code: IntegerCode, config: Int8Config | Int4Config, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    scale = np.asarray(code.scale, np.float32)[..., None]
    n, groups, packed = *scale.shape[-3:-1], np.asarray(code.codes)
    along_tokens = _along_tokens(config, stream, n, groups * (config.group_size or packed.shape[-2]))
    bits, group_size, affine = _format(config, packed.shape[-2] if along_tokens else packed.shape[-1])
    steps = unpack(packed, bits, n if along_tokens else groups * group_size)
    if bits == 4:
        steps = _halves_apart(steps)
    if along_tokens:
        steps = np.swapaxes(steps, -1, -2)
    elif bits == 4:
        steps = _lanes_last(steps)
    steps = (steps.astype(np.int32) + _zero(bits, affine)) % 2**bits
    steps = steps.astype(np.float32).reshape(*scale.shape[:-1], group_size)
    if affine:
        x = steps * scale + np.asarray(code.minimum, np.float32)[..., None]
    else:
        x = (steps - np.float32(2 ** (bits - 1) - 1)) * scale
    return x.reshape(*x.shape[:-2], -1)


def _zero(bits: int, affine: bool) -> int:
    """The code that is packed as 0."""
    return 2 ** (bits - 1) - (not affine)


def _along_tokens(config: Int8Config | Int4Config, stream: StreamName, n: int, head_dim: int) -> bool:
    if isinstance(config, Int8Config):
        return stream == "value" and config.group_size in (None, head_dim)
    return stream == "value" and n % 8 == 0


def _halves_interleaved(rows: np.ndarray) -> np.ndarray:
    """Of eight codes, the first four in lower nibbles and the last four in upper ones."""
    return np.swapaxes(rows.reshape(*rows.shape[:-1], -1, 2, 4), -1, -2).reshape(rows.shape)


def _halves_apart(rows: np.ndarray) -> np.ndarray:
    return np.swapaxes(rows.reshape(*rows.shape[:-1], -1, 4, 2), -1, -2).reshape(rows.shape)


def _lanes_first(rows: np.ndarray) -> np.ndarray:
    """Eight channels of each lane from every 32, lane after lane."""
    return np.swapaxes(rows.reshape(*rows.shape[:-1], -1, 4, 8), -3, -2).reshape(rows.shape)


def _lanes_last(rows: np.ndarray) -> np.ndarray:
    return np.swapaxes(rows.reshape(*rows.shape[:-1], 4, -1, 8), -3, -2).reshape(rows.shape)


def _format(config: Int8Config | Int4Config, head_dim: int) -> tuple[int, int, bool]:
    """Bits, group size, and whether the grid is affine."""
    if isinstance(config, Int8Config):
        return 8, config.group_size or head_dim, False
    return 4, config.group_size, config.affine

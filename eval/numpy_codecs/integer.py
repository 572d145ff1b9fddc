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
    rows = codes.reshape(blocks.shape)
    if bits == 8:
        rows = (rows.astype(np.int32) - 127) % 256  # two's complement
    if stream == "value" and bits == 8 and group_size == blocks.shape[-1]:
        rows = np.swapaxes(rows, -1, -2)
    packed = pack(rows, bits)
    return IntegerCode(codes=packed, scale=scale[..., 0], minimum=minimum)  # pyright: ignore[reportArgumentType]


def decode(code: IntegerCode, config: Int8Config | Int4Config, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    scale = np.asarray(code.scale, np.float32)[..., None]
    n, groups, packed = *scale.shape[-3:-1], np.asarray(code.codes)
    bits = _format(config, 1)[0]
    along_tokens = stream == "value" and groups == 1 and bits == 8
    steps = unpack(packed, bits, n if along_tokens else 8 * packed.shape[-1] // bits)
    if along_tokens:
        steps = np.swapaxes(steps, -1, -2)
    if bits == 8:
        steps = (steps.astype(np.int32) + 127) % 256
    _, group_size, affine = _format(config, steps.shape[-1])
    steps = steps.astype(np.float32).reshape(*scale.shape[:-1], group_size)
    if affine:
        x = steps * scale + np.asarray(code.minimum, np.float32)[..., None]
    else:
        x = (steps - np.float32(2 ** (bits - 1) - 1)) * scale
    return x.reshape(*x.shape[:-2], -1)


def _format(config: Int8Config | Int4Config, head_dim: int) -> tuple[int, int, bool]:
    """Bits, group size, and whether the grid is affine."""
    if isinstance(config, Int8Config):
        return 8, config.group_size or head_dim, False
    return 4, config.group_size, config.affine

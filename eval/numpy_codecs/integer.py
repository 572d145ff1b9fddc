"""int8 for each token or group of channels and int4 in groups of channels, in numpy."""

import numpy as np

from kakeya_jax.codecs.integer import Int4Config, Int8Config, IntegerCode
from kakeya_jax.eval.numpy_codecs.affine import quantize_affine, quantize_symmetric
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: Int8Config | Int4Config, stream: StreamName = "key") -> IntegerCode:
    """The code of ``blocks`` ``[..., n, d]``."""
    del stream
    bits, group_size, affine = _format(config, blocks.shape[-1])
    groups = blocks.reshape(*blocks.shape[:-1], -1, group_size)
    minimum = None
    if affine:
        codes, scale, minimum = quantize_affine(groups, bits, axis=-1)
        minimum = minimum[..., 0]
    else:
        codes, scale = quantize_symmetric(groups, bits, axis=-1)
    packed = pack(codes.reshape(blocks.shape), bits)
    return IntegerCode(codes=packed, scale=scale[..., 0], minimum=minimum)  # pyright: ignore[reportArgumentType]


def decode(code: IntegerCode, config: Int8Config | Int4Config, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    del stream
    scale = np.asarray(code.scale, np.float32)[..., None]
    bits, group_size, affine = _format(config, 8 * code.codes.shape[-1] // (8 if config.name == "int8" else 4))
    steps = unpack(np.asarray(code.codes), bits, scale.shape[-2] * group_size).astype(np.float32)
    steps = steps.reshape(*scale.shape[:-1], group_size)
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

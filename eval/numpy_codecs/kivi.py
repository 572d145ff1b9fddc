"""KIVI in numpy."""

import numpy as np

from kakeya_jax.codecs.kivi import KiviCode, KiviConfig
from kakeya_jax.eval.numpy_codecs.affine import quantize_affine
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: KiviConfig, stream: StreamName = "key") -> KiviCode:
    """The code of ``blocks`` ``[..., n, d]``."""
    groups, axis = _grouped(blocks, config, stream)
    codes, scale, minimum = quantize_affine(groups, config.bits, axis)
    return KiviCode(
        codes=pack(codes.reshape(blocks.shape), config.bits),  # pyright: ignore[reportArgumentType]
        scale=scale.squeeze(axis),  # pyright: ignore[reportArgumentType]
        minimum=minimum.squeeze(axis),  # pyright: ignore[reportArgumentType]
    )


def decode(code: KiviCode, config: KiviConfig, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    packed = np.asarray(code.codes)
    steps = unpack(packed, config.bits, packed.shape[-1] * 8 // config.bits).astype(np.float32)
    groups, axis = _grouped(steps, config, stream)
    scale, minimum = (np.expand_dims(np.asarray(a, np.float32), axis) for a in (code.scale, code.minimum))
    return (groups * scale + minimum).reshape(steps.shape)


def _grouped(x: np.ndarray, config: KiviConfig, stream: StreamName) -> tuple[np.ndarray, int]:
    """Groups of tokens (keys) or of channels (values), and the axis along which a group lies."""
    *batch, n, d = x.shape
    size = config.group_size
    if (config.axis or ("channel" if stream == "key" else "token")) == "channel":
        return x.reshape(*batch, n // size, size, d), -2
    return x.reshape(*batch, n, d // size, size), -1

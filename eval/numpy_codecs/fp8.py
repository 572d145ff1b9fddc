"""8-bit floating point in numpy."""

import ml_dtypes
import numpy as np

from kakeya_jax.codecs.fp8 import Fp8Code, Fp8Config
from kakeya_jax.eval.numpy_codecs.affine import divide_or_zero
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: Fp8Config, stream: StreamName = "key") -> Fp8Code:
    """The code of ``blocks`` ``[..., n, d]``."""
    del stream
    x, scale = blocks, None
    if config.scale is not None:
        scale = (np.abs(blocks).max(axis=-1) / np.float32(448)).astype(np.float16)
        x = divide_or_zero(blocks, scale[..., None])
    codes = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return Fp8Code(codes=codes, scale=scale)  # pyright: ignore[reportArgumentType]


def decode(code: Fp8Code, config: Fp8Config, stream: StreamName = "key") -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    del config, stream
    x = np.asarray(code.codes).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return x if code.scale is None else x * np.asarray(code.scale, np.float32)[..., None]

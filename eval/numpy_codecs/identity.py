"""bfloat16 values in numpy."""

import ml_dtypes
import numpy as np

from kakeya_jax.codecs.identity import IdentityCode, IdentityConfig
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: IdentityConfig, stream: StreamName = "key") -> IdentityCode:
    """``blocks`` ``[..., n, d]`` rounded to bfloat16."""
    del config, stream
    return IdentityCode(values=blocks.astype(ml_dtypes.bfloat16))  # pyright: ignore[reportArgumentType]


def decode(code: IdentityCode, config: IdentityConfig, stream: StreamName = "key") -> np.ndarray:
    """The stored values as float32."""
    del config, stream
    return np.asarray(code.values).astype(np.float32)

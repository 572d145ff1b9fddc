"""TurboQuant in numpy; indices are packed along channels, the first lowest."""

import functools

import numpy as np
import scipy.linalg

from kakeya_jax.codecs.turboquant import TurboQuantCode, TurboQuantConfig, coordinate_levels
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.numeric import EPS
from kakeya_jax.typing import StreamName


def encode(blocks: np.ndarray, config: TurboQuantConfig, stream: StreamName = "key", layer: int = 0) -> TurboQuantCode:
    """The code of ``blocks`` ``[..., n, d]``."""
    d = blocks.shape[-1]
    bits = config.bits - config.qjl
    seed = config.seed + 2 * layer + (stream == "value")
    rotation, levels = _rotation(config.rotation, d, seed), coordinate_levels(bits)
    norm = np.linalg.norm(blocks, axis=-1, keepdims=True)
    zero = norm <= EPS
    rotated = (blocks / np.where(zero, np.float32(1), norm)) @ rotation.T
    indices = np.searchsorted((levels[1:] + levels[:-1]) / 2, rotated * np.float32(np.sqrt(d)))
    decoded = levels[indices]
    length = np.linalg.norm(decoded, axis=-1, keepdims=True) if config.norm_correction else np.float32(np.sqrt(d))
    scale = np.where(zero, np.float32(0), norm / length).astype(np.float16)
    signs = residual_norm = None
    if config.qjl:
        residual = blocks - scale.astype(np.float32) * (decoded @ rotation)
        signs = pack(residual @ _rotation("haar", d, seed + 1000).T >= 0, 1)
        residual_norm = np.linalg.norm(residual, axis=-1).astype(np.float16)
    return TurboQuantCode(
        indices=pack(indices, bits),  # pyright: ignore[reportArgumentType]
        scale=scale[..., 0],  # pyright: ignore[reportArgumentType]
        signs=signs,  # pyright: ignore[reportArgumentType]
        residual_norm=residual_norm,  # pyright: ignore[reportArgumentType]
    )


def decode(
    code: TurboQuantCode, config: TurboQuantConfig, head_dim: int, stream: StreamName = "key", layer: int = 0
) -> np.ndarray:
    """The reconstruction ``[..., n, d]``."""
    bits = config.bits - config.qjl
    seed = config.seed + 2 * layer + (stream == "value")
    levels = coordinate_levels(bits)[unpack(np.asarray(code.indices), bits, head_dim)]
    x = np.asarray(code.scale, np.float32)[..., None] * (levels @ _rotation(config.rotation, head_dim, seed))
    if code.signs is None or code.residual_norm is None:
        return x
    signs = 2 * unpack(np.asarray(code.signs), 1, head_dim).astype(np.float32) - 1
    factor = np.float32(config.qjl_shrinkage * np.sqrt(np.pi / 2 / head_dim))
    sketch = _rotation("haar", head_dim, seed + 1000)
    return x + factor * np.asarray(code.residual_norm, np.float32)[..., None] * (signs @ sketch)


@functools.lru_cache
def _rotation(kind: str, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "hadamard":
        first, second = rng.choice([-1.0, 1.0], (2, dim))
        matrix = np.diag(second) @ scipy.linalg.hadamard(dim) @ np.diag(first) / np.sqrt(dim)
    else:
        q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
        matrix = q @ np.diag(np.sign(np.diag(r)))
        if np.linalg.det(matrix) < 0:
            matrix[:, 0] *= -1
    return matrix.astype(np.float32)

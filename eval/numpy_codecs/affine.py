"""Evenly spaced grids with float16 parameters, in numpy."""

import numpy as np


def quantize_affine(x: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, float16 scale and float16 minimum of groups along ``axis`` (kept with length one)."""
    minimum = x.min(axis=axis, keepdims=True).astype(np.float16)
    deviation = x - minimum.astype(np.float32)
    largest = 2**bits - 1
    scale = (np.maximum(deviation.max(axis=axis, keepdims=True), 0) / np.float32(largest)).astype(np.float16)
    return np.clip(np.round(divide_or_zero(deviation, scale)), 0, largest).astype(np.uint8), scale, minimum


def quantize_symmetric(x: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes made non-negative and the float16 scale of groups along ``axis`` (kept with length one)."""
    largest = 2 ** (bits - 1) - 1
    scale = (np.abs(x).max(axis=axis, keepdims=True) / np.float32(largest)).astype(np.float16)
    return (np.clip(np.round(divide_or_zero(x, scale)), -largest, largest) + largest).astype(np.uint8), scale


def divide_or_zero(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``x / scale`` in float32, 0 where the scale is 0."""
    step = scale.astype(np.float32)
    return np.where(step > 0, x / np.where(step > 0, step, np.float32(1)), np.float32(0))

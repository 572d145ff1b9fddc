"""The calibrated transform codec in numpy: one head, ``[pages, n, d]``."""

import numpy as np

from kakeya_jax.codecs.klt import SCALE_STEPS, SCALE_ZERO, KltConfig
from kakeya_jax.eval.numpy_codecs.packing import pack
from kakeya_jax.klt_layout import quantizer_bytes, quantizer_levels
from kakeya_jax.numeric import LIMIT
from kakeya_jax.typing import StreamName

_, _STEP = quantizer_bytes(8)


def encode(
    blocks: np.ndarray, config: KltConfig, stream: StreamName, tables: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Packed codes of each width, token scales, page means and their scales."""
    x = np.clip(blocks, -LIMIT, LIMIT) - tables["mean"][0]
    if config.form == "fast" and stream == "key":
        angle = np.arange(x.shape[1], dtype=np.float32)[:, None] * tables["rope_frequencies"]
        cos, sin = np.cos(angle), np.sin(angle)
        first, second = np.split(x, 2, axis=-1)
        x = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    z = x @ tables["analysis"][0]
    stored: list[np.ndarray] = []
    if config.page_mean:
        mean = z.mean(axis=1)
        unit = np.abs(mean).max(axis=1, keepdims=True).astype(np.float16) / np.float16(127)
        codes = np.round(mean / np.maximum(unit.astype(np.float32), 1e-12)).astype(np.int8)
        z = z - (codes * unit.astype(np.float32))[:, None]
        stored += [codes, unit]
    widths = np.repeat(tables["widths"][0], z.shape[-1] // tables["widths"].shape[1])
    kept, weights = z[..., widths > 0], tables["variances"][0][widths > 0]
    kept_widths = widths[widths > 0]
    scale = _round_scale(np.sqrt(np.mean(kept * kept, axis=-1)))
    for _ in range(config.scale_rounds):
        levels = _levels(_quantize(kept, scale, kept_widths), kept_widths)
        along, length = (weights * kept * levels).sum(axis=-1), (weights * levels * levels).sum(axis=-1)
        scale = _round_scale(along / np.maximum(length, 1e-30))
    quantized = _quantize(kept, scale, kept_widths)
    stored.append(scale)
    for width in np.unique(kept_widths)[::-1]:
        codes = quantized[..., kept_widths == width]
        stored.append(pack(codes if stream == "key" else np.swapaxes(codes, 1, 2), int(width)))
    return stored


def _round_scale(scale: np.ndarray) -> np.ndarray:
    steps = np.round(SCALE_STEPS * np.log2(np.maximum(scale, 2.0**-20)))
    return np.clip(steps + SCALE_ZERO, 0, 255).astype(np.uint8)


def _quantize(z: np.ndarray, scale: np.ndarray, widths: np.ndarray) -> np.ndarray:
    unit = z / np.exp2((scale.astype(np.float32) - SCALE_ZERO) / SCALE_STEPS)[..., None]
    codes = np.empty(z.shape, np.uint8)
    for width in np.unique(widths):
        here = widths == width
        if width == 8:
            codes[..., here] = np.clip(np.round(unit[..., here] / _STEP + 127.5), 0, 255)
        else:
            levels = quantizer_levels(int(width))
            codes[..., here] = np.searchsorted((levels[1:] + levels[:-1]) / 2, unit[..., here])
    return codes


def _levels(codes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    values = np.empty(codes.shape, np.float32)
    for width in np.unique(widths):
        here = widths == width
        values[..., here] = quantizer_levels(int(width))[codes[..., here]]
    return values

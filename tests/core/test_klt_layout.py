"""Quantisers of transform-coded channels: their levels are bytes, and as good as bytes can be."""

import numpy as np
import pytest

from kakeya_jax.klt_layout import (
    FAST_WIDTHS,
    QUALITY_WIDTHS,
    distortion,
    gaussian_error,
    quantizer_bytes,
    quantizer_levels,
)
from kakeya_jax.lloyd_max import gaussian_levels

DRAWS = np.random.default_rng(0).standard_normal(400_000)


def error_of(levels: np.ndarray) -> float:
    """Mean squared error of the draws at their nearest of ascending levels."""
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, DRAWS)]
    return float(np.mean(np.square(DRAWS - nearest)))


@pytest.mark.parametrize("width", sorted({*FAST_WIDTHS, *QUALITY_WIDTHS}))
def test_levels_are_a_unit_times_bytes_and_a_half(width: int) -> None:
    table, unit = quantizer_bytes(width)
    assert list(table) == sorted(set(table))
    assert len(table) == 2**width
    assert table[0] >= -128
    assert table[-1] <= 127
    assert all(low == ~high for low, high in zip(table, reversed(table), strict=True))
    np.testing.assert_allclose(quantizer_levels(width), unit * (np.array(table) + 0.5), rtol=1e-6)
    assert error_of(quantizer_levels(width)) == pytest.approx(distortion(width), rel=0.04)


@pytest.mark.parametrize(("width", "most"), [(1, 1.0001), (2, 1.0001), (3, 1.0001), (4, 1.0006), (5, 1.007), (6, 1.03)])
def test_bytes_cost_little_beside_the_best_levels(width: int, most: float) -> None:
    best = gaussian_error(gaussian_levels(width))
    assert best * 0.9999 < distortion(width) < most * best


def test_no_other_byte_of_six_bits_is_better() -> None:
    """Moving any one by one makes the error larger, at the unit that is best then."""
    table, unit = quantizer_bytes(6)
    magnitudes = np.array(table[32:])

    def error(bytes_: np.ndarray) -> float:
        half = bytes_ + 0.5
        both = np.concatenate([-half[::-1], half])
        return min(gaussian_error(each * both) for each in unit * np.linspace(0.99, 1.01, 41))

    here = error(magnitudes)
    for place in range(32):
        for step in (-1, 1):
            moved = magnitudes.copy()
            moved[place] += step
            if np.all(np.diff(moved) > 0) and moved[-1] <= 127:
                assert error(moved) > here, (place, step)

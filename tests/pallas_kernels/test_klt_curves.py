"""What a mean that turns makes of logits, as sums of a few curves."""

import numpy as np
import pytest

from kakeya_jax.pallas_kernels.attention.klt_curves import curve_coefficients, curve_values, page_curves
from kakeya_jax.rope import Llama3Scaling, Rope


def waves(rope: Rope, page: int) -> np.ndarray:
    angles = np.arange(page)[:, None] * np.asarray(rope.frequencies, np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize(
    ("theta", "page", "count"),
    [
        *((1e4, page, count) for page, count in ((64, 32), (128, 40), (192, 48))),
        *((5e5, page, count) for page, count in ((64, 24), (128, 32), (192, 40))),
        *((1e6, page, count) for page, count in ((64, 24), (128, 32), (192, 32))),
    ],
)
def test_cosines_and_sines_are_sums_of_few_curves(theta: float, page: int, count: int):
    rope = Rope(head_dim=128, theta=theta)
    values, coefficients = page_curves(rope, page)
    assert values.shape == (page, count)
    expected = waves(rope, page)
    error = values.astype(np.float64) @ coefficients.reshape(count, 128) - expected
    rounded = expected.astype(np.float16) - expected
    assert np.sqrt(np.mean(error**2)) < 1e-4  # what remains is the curves' float16
    assert np.max(np.abs(error)) < 2 * np.max(np.abs(rounded))


def test_slow_pairs_are_nearly_exact():
    """Their mean is the largest part of a logit in models."""
    rope = Rope(head_dim=128, theta=5e5)
    values, coefficients = page_curves(rope, 128)
    error = values.astype(np.float64) @ coefficients.reshape(-1, 128) - waves(rope, 128)
    assert np.max(np.abs(error[:, 48:64])) < 1e-6


def test_coefficients_fit_float16():
    """Of a query and a mean whose entries are all as large as they come."""
    for rope in (Rope(head_dim=128), Rope(head_dim=128, theta=5e5, scaling=Llama3Scaling(**SCALING))):
        coefficients = page_curves(rope, 128).coefficients
        assert np.max(np.sum(np.hypot(*coefficients.transpose(1, 0, 2)), axis=1)) * 64 * 2 < 60000


SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_operands_are_where_lanes_look_for_them(theta: float):
    rope = Rope(head_dim=128, theta=theta)
    values, coefficients = page_curves(rope, 128)
    count = values.shape[1]
    operands = curve_values(rope, 128)
    for product in range(4):
        for lane in (0, 7, 30):
            row, column = divmod(lane, 4)
            token = 64 + 16 * (row // 2) + 2 * (row % 2) + 4 * product
            first = operands[1, product, 8 * lane : 8 * lane + 8].reshape(4, 2)
            for word, (further, eight) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
                at = 8 * eight + 2 * column
                np.testing.assert_array_equal(first[word], values[token + further, at : at + 2])
            if count % 16:
                last = operands[1, product, 16 * (count - 8) + 4 * lane :][:4].reshape(2, 2)
                at = count - 8 + 2 * column
                np.testing.assert_array_equal(last, values[token : token + 2, at : at + 2])
    table = curve_coefficients(rope, 128)
    assert table.shape == (-(-count // 32), 4, 4, 2, 32, 4)
    padded = np.pad(coefficients, ((0, -count % 32), (0, 0), (0, 0)))
    for block, warp, lane in ((0, 0, 0), (0, 3, 6), (1, 1, 22), (1, 0, 13), (2, 2, 29)):
        block %= len(table)
        column, second = divmod(lane // 4, 2)
        curve = 32 * block + 8 * warp + 2 * column + second
        if block < len(table) // 2 * 2:  # a lane has four neighbours of two blocks
            curve = 64 * (block // 2) + 32 * (column // 2) + 8 * warp + 4 * (column % 2) + 2 * (block % 2) + second
        at = 4 * (lane % 4)
        wanted = padded[curve, 1, 32 + at : 32 + at + 4]
        np.testing.assert_allclose(table[block, warp, 2, 1, lane], wanted, rtol=1e-6)

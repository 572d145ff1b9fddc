"""What a mean that turns makes of logits: functions of the token's place in its page, as sums of a few curves.

With a query turned back to where a page starts, ``(x, y)`` for each pair of channels that turn together, and the mean
``(n, m)`` of keys there, the logit of token ``d`` beside its codes is ``sum_f (x n + y m) cos(theta_f d) +
(y n - x m) sin(theta_f d)``. There are 128 cosines and sines at head dimension 128; but angles are at most one radian a
token, so that all of them are sums of few curves, whatever the mean is: the first singular vectors.
"""

import functools
from typing import NamedTuple

import numpy as np

from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM
from kakeya_jax.rope import Rope

EIGHT = 8
"""The least depth of a product: there is a multiple of so many curves."""

_LARGEST_ERROR = 1e-4
"""Of any cosine or sine as a sum of curves: less than float16 makes of it, which is 2.4e-4. A curve more takes about a
factor of ten away."""

QUERY_LARGEST = 64.0
"""What a query's largest entry becomes in float16,"""

_COEFFICIENT_LARGEST = 60000.0
"""and the most that a coefficient can be, of such a query and a mean whose largest entry is 1."""


class Curves(NamedTuple):
    """Of a page of ``n`` tokens.

    Attributes:
        values: float16 ``[n, R]``, ``R`` a multiple of eight.
        coefficients: float64 ``[R, 2, D / 2]``: of every cosine, and of every sine.
    """

    values: np.ndarray
    coefficients: np.ndarray


@functools.lru_cache(maxsize=64)
def page_curves(rope: Rope, page: int) -> Curves:
    """As few curves as it takes.

    The first two are a constant and a line, whose numbers float16 has exactly: most of what a mean does is slow. What
    the numbers of the others lose, other coefficients make up for, as far as they can: they are those of the numbers
    that are left.
    """
    waves = _waves(rope, page)
    place = np.arange(page)
    line = (place - page // 2) / 2.0 ** np.ceil(np.log2(page / 2))
    first = np.stack([np.ones(page), line], axis=1)
    slow, _ = np.linalg.qr(first)
    fast = np.linalg.svd(waves - slow @ (slow.T @ waves))[0]
    every = np.concatenate([first, fast / np.max(np.abs(fast), axis=0)], axis=1)

    def left_out(count: int) -> float:
        return np.max(np.abs(waves - every[:, :count] @ _fitted(every[:, :count], waves)))

    count = next(count for count in range(EIGHT, page + 1, EIGHT) if left_out(count) < _LARGEST_ERROR)
    curves = every[:, :count]
    coefficients = _fitted(curves.astype(np.float16).astype(np.float64), waves).reshape(count, 2, DIM // 2)
    # Pairs of channels of a query and a mean are at most the roots of two times their largest entries.
    most = 2 * QUERY_LARGEST * np.max(np.sum(np.hypot(*coefficients.transpose(1, 0, 2)), axis=1))
    factor = 2.0 ** np.floor(np.log2(_COEFFICIENT_LARGEST / most))
    return Curves((curves / factor).astype(np.float16), coefficients * factor)


@functools.lru_cache(maxsize=64)
def curve_values(rope: Rope, page: int) -> np.ndarray:
    """Left operands of the logits of tiles, float16 ``[tiles, 4, 16 R]``: for each product of 16 tokens, in the order
    in which lanes have them (``key_places``), steps of 16 curves, eight numbers a lane, and one of eight
    if they are left, four numbers."""
    values = page_curves(rope, page).values
    # Two of a row's bits, product, its lowest bit, half of the rows; eight curves, a column's two.
    parts = values.reshape(-1, 4, PRODUCTS, 2, 2, values.shape[1] // EIGHT, 4, 2)
    steps = [parts[:, :, :, :, :, at : at + 2] for at in range(0, parts.shape[5], 2)]
    found = [each.transpose(0, 2, 1, 3, 6, 5, 4, 7).reshape(-1, PRODUCTS, 16 * EIGHT * each.shape[5]) for each in steps]
    return np.concatenate(found, axis=-1)


@functools.lru_cache(maxsize=64)
def curve_coefficients(rope: Rope, page: int) -> np.ndarray:
    """What ``klt_query_operands.CurveOperands`` takes, float32 ``[R / 32, 4, 4, 2, 32, 4]``: for each 32 curves, each
    warp and each part of 16 frequencies, coefficients of cosines and of sines.

    Of every 64 curves, a lane's four sums in two blocks are of four neighbours."""
    coefficients = page_curves(rope, page).coefficients
    padded = np.pad(coefficients, ((0, -len(coefficients) % 32), (0, 0), (0, 0)))
    paired = len(padded) // 64 * 64
    # Half of the curves, warp, half of eight, block, which of a lane's two.
    pairs = padded[:paired].reshape(-1, 2, 4, 2, 2, 2, 2, DIM // 2).transpose(0, 4, 2, 1, 3, 5, 6, 7)
    padded = np.concatenate([pairs.reshape(paired, 2, DIM // 2), padded[paired:]])
    parts = padded.reshape(-1, 4, 8, 2, 4, 4, 4).transpose(0, 1, 4, 3, 2, 5, 6)
    return parts.reshape(-1, 4, 4, 2, 32, 4).astype(np.float32)


def _fitted(curves: np.ndarray, waves: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(curves, waves, rcond=None)[0]


def _waves(rope: Rope, page: int) -> np.ndarray:
    """Cosines of the angles in a page, and sines, ``[n, D]``."""
    angles = np.arange(page)[:, None] * np.asarray(rope.frequencies, np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

"""Code books of trellis-coded quantisation for a unit Gaussian: levels, and what they leave of it.

The code book of ``width`` bits has ``2 ** (width + 1)`` ascending levels, antisymmetric; level ``i`` is in subset
``i % 4``. A value's code is its branch bit (``trellis``) plus twice the level's place in the subset.

The constants below are what ``fit_code_books`` finds; a test fits them again.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.lloyd_max import gaussian_levels, midpoints
from kakeya_jax.trellis import CODES, TrellisCode
from kakeya_jax.typing import Array, Float, Int

CODE = CODES[8]
"""Of 4, 8, 16 and 32 states: see the table in docs/klt.md."""

RUN = 128
"""Values of the runs that levels are fitted to."""

_POSITIVE_LEVELS: dict[int, tuple[float, ...]] = {
    1: (0.3579, 1.1937),
    2: (0.1973, 0.5986, 1.0717, 1.8619),
    3: (0.1045, 0.3043, 0.5225, 0.7519, 1.0185, 1.3323, 1.7757, 2.4666),
    4: (
        *(0.0564, 0.1504, 0.2639, 0.3618, 0.4757, 0.5832, 0.7018, 0.8233, 0.9591, 1.1037, 1.2713, 1.4671),
        *(1.7071, 2.0050, 2.3988, 2.9930),
    ),
    5: (
        *(0.0292, 0.0750, 0.1321, 0.1811, 0.2369, 0.2867, 0.3419, 0.3924, 0.4477, 0.5014, 0.5586, 0.6147),
        *(0.6734, 0.7336, 0.7969, 0.8610, 0.9287, 0.9983, 1.0706, 1.1479, 1.2312, 1.3207, 1.4215, 1.5316),
        *(1.6565, 1.7953, 1.9512, 2.1318, 2.3454, 2.6054, 2.9474, 3.4766),
    ),
    6: (
        *(0.0139, 0.0384, 0.0656, 0.0901, 0.1174, 0.1422, 0.1693, 0.1949, 0.2218, 0.2477, 0.2742, 0.2987),
        *(0.3275, 0.3515, 0.3795, 0.4048, 0.4322, 0.4589, 0.4870, 0.5140, 0.5437, 0.5710, 0.6009, 0.6302),
        *(0.6610, 0.6908, 0.7200, 0.7498, 0.7815, 0.8122, 0.8450, 0.8771, 0.9109, 0.9446, 0.9802, 1.0156),
        *(1.0518, 1.0889, 1.1275, 1.1660, 1.2072, 1.2498, 1.2952, 1.3434, 1.3940, 1.4493, 1.5067, 1.5651),
        *(1.6269, 1.6925, 1.7615, 1.8362, 1.9128, 1.9976, 2.0889, 2.1866, 2.2951, 2.4190, 2.5573, 2.7161),
        *(2.8998, 3.1232, 3.4272, 3.9158),
    ),
}
"""The levels above 0, by bits."""

_ERRORS = {
    1: 0.3077,
    2: 0.08684,
    3: 0.02367,
    4: 0.00623,
    5: 0.001608,
    6: 0.0004095,
}
"""Measured on draws that the levels were not fitted to."""


@functools.cache
def trellis_levels(width: int) -> np.ndarray:
    """The levels at ``width`` bits, 1 to 6: float32 ``[2 ** (width + 1)]``, ascending, read-only."""
    half = np.asarray(_POSITIVE_LEVELS[width])
    levels = np.concatenate([-half[::-1], half]).astype(np.float32)
    levels.setflags(write=False)
    return levels


def trellis_error(width: int) -> float:
    """Mean squared error of a unit Gaussian at ``width`` bits, 1 to 6, in runs of ``RUN`` values."""
    return _ERRORS[width]


def nearest_in_subsets(
    values: Float[Array, "*shape"], levels: Float[Array, " levels"] | np.ndarray
) -> Int[Array, "4 *shape"]:
    """For each of the four subsets the place of the nearest level among the subset's own: int32."""
    edges = jnp.stack([midpoints(jnp.asarray(levels)[subset::4]) for subset in range(4)])
    edges = edges.reshape(4, *[1] * values.ndim, -1)
    return jnp.sum(values[..., None] > edges, axis=-1, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames="code")
def nearest_path(
    values: Float[Array, "T *runs"], levels: Float[Array, " levels"], code: TrellisCode
) -> Int[Array, "T *runs"]:
    """The level of every value, as its index, on the path of least squared error."""
    places = nearest_in_subsets(values, levels)
    cost = [jnp.square(values - levels[4 * place + subset]) for subset, place in enumerate(places)]
    subset = code.subsets(code.best_branches(jnp.stack(cost, axis=1)))
    return 4 * jax.lax.select_n(subset, *places) + subset


def fit_code_books(
    code: TrellisCode = CODE, *, runs: int = 4096, iterations: int = 60, widest: int = 6
) -> Iterator[tuple[np.ndarray, float]]:
    """Levels of 1, 2 and more bits and their mean squared errors on other draws: seconds for each width.

    Lloyd's iteration through the encoder: each level becomes the mean of the draws that take it. One bit starts at four
    Lloyd-Max levels, every other width at the levels of the one before, twice as dense: at once close to where levels
    that begin at Lloyd-Max ones would be after hundreds of iterations.

    Args:
        code: which.
        runs: of ``RUN`` draws each.
        iterations: for each width.
        widest: the last width.
    """
    draws, others = (jax.random.normal(jax.random.key(seed), (RUN, runs)) for seed in (0, 1))
    flat = np.asarray(draws, np.float64).reshape(-1)
    levels = gaussian_levels(2).astype(np.float64)
    for width in range(1, widest + 1):
        if width > 1:
            levels = _twice_as_dense(levels)
        for _ in range(iterations):
            index = np.asarray(nearest_path(draws, jnp.asarray(levels, jnp.float32), code)).reshape(-1)
            count = np.bincount(index, minlength=len(levels))
            means = np.where(count, np.bincount(index, flat, len(levels)) / np.maximum(count, 1), levels)
            levels = (means - means[::-1]) / 2
        rounded = jnp.asarray(levels, jnp.float32)
        yield levels, float(jnp.mean(jnp.square(others - rounded[nearest_path(others, rounded, code)])))


def _twice_as_dense(levels: np.ndarray) -> np.ndarray:
    """Twice as many levels that lie as these do; the outermost a little farther out."""
    count = len(levels)
    found = np.interp((np.arange(2 * count) + 0.5) / 2, np.arange(count) + 0.5, levels)
    found[-1] += 0.25 * (levels[-1] - levels[-2])
    found[0] = -found[-1]
    return found

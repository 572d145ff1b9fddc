"""What a uniform mid-tread quantiser ``round(x / step) step`` does to a unit Gaussian: rate, distortion, and gain.

Host code in float64; ``step`` is in standard deviations throughout.
"""

import dataclasses

import numpy as np
import scipy.special

from kakeya_jax.typing import Float

_RANGE = 12.0
"""Standard deviations beyond which a Gaussian has no mass that float64 sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianStatistics:
    """One entry for each step, all of ``q = round(x / step) step``.

    Attributes:
        bits: entropy of the symbol.
        gain: what ``q`` is stretched by to decode: the geometric mean of least squares ``E[x q] / E[q^2]`` and no bias
            ``E[x^2] / E[x q]``, so that decoded values have the variance of the source.
        independent: variance of the decoded value that does not follow ``x``: ``E[(gain q)^2] - E[x gain q]^2``.
        coherent: squared share of ``x`` that is missing on average: ``(1 - E[x gain q])^2``.
    """

    bits: np.ndarray
    gain: np.ndarray
    independent: np.ndarray
    coherent: np.ndarray


def gaussian_statistics(steps: Float[np.ndarray, " steps"]) -> GaussianStatistics:
    """The statistics of each step; a step of infinity drops the value: no bits, all of it missing."""
    steps = np.asarray(steps, np.float64)
    rows = [_of_one(step) if np.isfinite(step) else (0.0, 0.0, 0.0, 1.0) for step in steps]
    bits, gain, independent, coherent = np.array(rows).T
    return GaussianStatistics(bits=bits, gain=gain, independent=independent, coherent=coherent)


def symbol_probabilities(steps: Float[np.ndarray, " steps"], half: int, deviations: float) -> np.ndarray:
    """Probability of the symbols ``-half .. half`` and, last, of an escape, for a unit Gaussian.

    Args:
        steps: one row for each.
        half: largest symbol there is room for.
        deviations: symbols whose values are all beyond so many standard deviations have probability 0: they are left
            to the escape.

    Returns:
        ``[steps, 2 half + 2]``; rows sum to 1.
    """
    steps = np.asarray(steps, np.float64)[:, None]
    symbols = np.arange(-half, half + 1)
    p = scipy.special.ndtr((symbols + 0.5) * steps) - scipy.special.ndtr((symbols - 0.5) * steps)
    p = np.where(np.abs(symbols) - 0.5 <= deviations / steps, np.maximum(p, 1e-12), 0.0)
    return np.concatenate([p, np.maximum(1.0 - p.sum(axis=1, keepdims=True), 0.0)], axis=1)


def step_of_rate(bits: float) -> float:
    """The step at which a symbol's entropy is ``bits``, by bisection; between 0.01 and 8."""
    low, high = 0.01, 8.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _of_one(middle)[0] > bits else (low, middle)
    return 0.5 * (low + high)


def _of_one(step: float) -> tuple[float, float, float, float]:
    symbols = np.arange(-int(_RANGE / step) - 1, int(_RANGE / step) + 2)
    edges = (np.append(symbols, symbols[-1] + 1) - 0.5) * step
    probability = np.diff(scipy.special.ndtr(edges))
    first_moment = -np.diff(np.exp(-0.5 * edges**2)) / np.sqrt(2 * np.pi)  # of x on each cell
    some = probability > 0
    bits = -np.sum(probability[some] * np.log2(probability[some]))
    energy = np.sum((symbols * step) ** 2 * probability)
    correlation = np.sum(symbols * step * first_moment)
    gain = 1.0 / np.sqrt(energy)
    return (
        float(bits),
        float(gain),
        float(gain**2 * energy - (gain * correlation) ** 2),
        float((1 - gain * correlation) ** 2),
    )

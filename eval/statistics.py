"""Intervals over passages: the bootstrap behind every ``ci95``.

Tokens of one passage share a text and are not independent, so passages are what is resampled. Passages are
few, and the plain percentile bootstrap is then too narrow; percentiles are widened by the t distribution (the
"expanded percentile" interval of Hesterberg, arXiv:1411.5279). For six normal values it covers 90 % where
95 % are asked for, the plain bootstrap 80 %.
"""

from collections.abc import Callable

import numpy as np
import scipy.stats

Interval = tuple[float, float]

RESAMPLES = 10_000


def bootstrap_interval(
    values: np.ndarray,
    transform: Callable[[np.ndarray], np.ndarray] = lambda mean: mean,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of ``transform(mean(values))``, resampling ``values``; the same numbers on every call.

    Args:
        values: one number for each passage ``[n]``, already paired (candidate minus reference).
        transform: a monotone function of the mean, applied to arrays.
        level: coverage aimed at.
        seed: of the resampling.

    Returns:
        Lower and upper end; ``None`` for fewer than two passages or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return None
    rows = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    means = values[rows].mean(axis=1)
    quantile = scipy.stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1))
    tail = scipy.stats.norm.sf(quantile)
    low, high = np.quantile(transform(means), [tail, 1 - tail])
    return float(low), float(high)


def perplexity(nll: np.ndarray) -> float:
    """``exp`` of the mean of negative log-likelihoods in nats, all tokens weighted alike."""
    return float(np.exp(np.mean(np.asarray(nll, np.float64))))


def delta_ppl_percent(mean_nll_difference: np.ndarray) -> np.ndarray:
    """How far perplexity moves, in percent, when the mean negative log-likelihood rises by that many nats."""
    return 100.0 * np.expm1(mean_nll_difference)

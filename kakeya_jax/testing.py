"""Synthetic keys and values that look like those of trained decoders, for tests and encode benchmarks."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from kakeya_jax.typing import Array, Float


def synthetic_kv(rng_seed: int, n: int, d: int, kind: Literal["key", "value"]) -> Float[Array, "n d"]:
    """Vectors with a decaying spectrum in a random basis; deterministic in all arguments.

    Keys carry a mean that is large against their deviations, three (for ``d = 128``) channels with an offset
    and a variance far above the rest, a steep spectrum, and slow drift from token to token. Values have no
    large mean, a flatter spectrum, and heavy-tailed token norms. Typical magnitudes are of order one for
    both.
    """
    rng = np.random.default_rng(rng_seed)
    make = _keys if kind == "key" else _values
    return jnp.asarray(make(rng, n, d).astype(np.float32))


def _keys(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    topics = np.repeat(rng.standard_normal((-(-n // 16), d)), 16, axis=0)[:n]
    latent = (0.8 * rng.standard_normal((n, d)) + 0.6 * topics) * _spectrum(d, power=1.0)
    keys = latent @ _rotation(rng, d) + 1.5 * rng.standard_normal(d)
    outliers = rng.choice(d, max(1, d // 40), replace=False)
    keys[:, outliers] = 3.0 * keys[:, outliers] + 20.0 * rng.choice([-1.0, 1.0], len(outliers))
    return keys


def _values(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    latent = rng.standard_normal((n, d)) * _spectrum(d, power=0.4)
    norms = np.exp(0.5 * rng.standard_normal((n, 1)))
    return norms * (latent @ _rotation(rng, d)) + 0.1 * rng.standard_normal(d)


def _spectrum(d: int, power: float) -> np.ndarray:
    """Standard deviations ``j**-power`` scaled to a mean square of one."""
    deviations = np.arange(1, d + 1) ** -power
    return deviations / np.sqrt(np.mean(deviations**2))


def _rotation(rng: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, d)))[0]

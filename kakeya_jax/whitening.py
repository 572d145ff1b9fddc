"""Maps of keys in which plain squared error is the error of attention logits (the Q-preconditioning of KakeyaTurbo).

A key's error ``e`` changes the logit of a query ``q`` by ``q . e``; over queries the mean square of that is
``e S e^T`` with ``S`` the second moment of the queries. With ``S = L L^T`` it is ``|e L|^2``: keys are coded as ``k L``
(row vectors) and come back through ``L^-1``. Queries and keys are taken before their rotary embedding, so that this
is the error for a query at the key's own position. The embedding turns all others, into directions where the map puts
errors: the notebook ``whitening`` shows what that costs.

Everything here is done once, on the host, in float64.
"""

import math

import jax.numpy as jnp
import numpy as np

from kakeya_jax.numeric import LIMIT
from kakeya_jax.typing import Array, Float

DEFAULT_RIDGE = 1e-3


def whitening_tables(
    query_moment: Float[Array, "K D D"],
    *,
    key_moment: Float[Array, "K D D"],
    key_largest: Float[Array, "K D"],
    key_count: float = math.inf,
    ridge: float = DEFAULT_RIDGE,
    max_condition: float | None = None,
) -> dict[str, Float[Array, "K D D"]]:
    """``{"whitening": L / s, "unwhitening": s L^-1}``, float32: what ``Frame`` applies for ``whiten=true``.

    The scale ``s`` of each head makes the root mean square of its whitened keys 1, ``s^2 = tr(L^T M L) / D``. It
    changes which numbers a codec sees, not which of two codes is the better one.

    A head is left as it is (both maps the identity) if a whitened key could leave the range that codecs code: if
    ``whitened_bound``, which no entry of the keys that the moments are of exceeds, is above ``numeric.LIMIT`` (2^14, a
    quarter of the largest float16).

    The ridge is a share of the mean of the diagonal, so the map does depend on how channels are scaled, unlike the
    coordinates of ``klt``. A share of each entry would not, but would bound the condition number of the map between
    scaled channels only; that of ``L`` itself is what keeps ``whitening`` followed by ``unwhitening`` exact in float32.

    Args:
        query_moment: mean of ``q^T q`` over tokens and over a head's group of queries, before the rotary embedding.
            Its scale has no effect; all zeros means that nothing is known, and every direction counts the same.
        key_moment: mean of ``k^T k`` of what is coded, ``M`` above: the covariance of keys if ``static_mean`` takes
            their mean out.
        key_largest: largest magnitude of each channel of what is coded.
        key_count: vectors that ``key_moment`` is the mean of; infinity if unknown.
        ridge: added to the diagonal of ``query_moment``, in units of its mean. Above 0; it bounds the condition number
            of ``L`` by ``sqrt(1 + D / ridge)``.
        max_condition: bound ``C`` on the condition number of ``L``, 50 for example; None for none. See ``logit_map``.

    Raises:
        ValueError: shapes that do not match, values that are not finite, or options out of range.
    """
    moment = _float64(query_moment, "query_moment", 3)
    keys = _float64(key_moment, "key_moment", 3)
    largest = _float64(key_largest, "key_largest", 2)
    if moment.shape != keys.shape or moment.shape[:2] != largest.shape or moment.shape[1] != moment.shape[2]:
        raise ValueError(
            f"query_moment {moment.shape} and key_moment {keys.shape} must be [K, D, D], key_largest {largest.shape} "
            "[K, D], of the same heads"
        )
    maps = logit_map(moment, ridge=ridge, max_condition=max_condition)
    rms = np.sqrt(np.einsum("kde,kdf,kfe->k", maps, keys, maps).clip(0) / maps.shape[-1])
    whitening = maps / np.where(rms > 0, rms, 1.0)[:, None, None]
    skip = whitened_bound(whitening, largest, keys, key_count) > LIMIT
    whitening[skip] = np.eye(maps.shape[-1])
    stored = whitening.astype(np.float32)
    # The inverse of the map as stored: its rounding then costs nothing.
    unwhitening = np.tril(np.linalg.inv(stored.astype(np.float64)))
    return {"whitening": jnp.asarray(stored), "unwhitening": jnp.asarray(unwhitening.astype(np.float32))}


def logit_map(
    query_moment: Float[np.ndarray, "K D D"], *, ridge: float = DEFAULT_RIDGE, max_condition: float | None = None
) -> Float[np.ndarray, "K D D"]:
    """The lower Cholesky factors ``L`` of the moments, regularised; float64.

    A moment is made symmetric, divided by the mean of its diagonal, and gets ``ridge`` on it. With ``max_condition``
    ``C`` it also gets ``max(0, (high - C^2 low) / (C^2 - 1))``, from its extreme eigenvalues: the least that brings the
    condition number of ``L`` down to ``C``.

    Raises:
        ValueError: an option is out of range, or a moment is no second moment (it has a clearly negative eigenvalue).
    """
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge} must be above 0; 1e-3 is usual")
    if max_condition is not None and not 1 < max_condition < math.inf:
        raise ValueError(f"max_condition={max_condition} must be above 1; 50 is usual")
    symmetric = (query_moment + np.swapaxes(query_moment, 1, 2)) / 2
    unit = np.eye(symmetric.shape[-1])
    mean = np.abs(np.trace(symmetric, axis1=1, axis2=2))[:, None, None] / symmetric.shape[-1]
    moment = np.where(mean > 0, symmetric / np.where(mean > 0, mean, 1.0), unit) + ridge * unit
    eigenvalues = np.linalg.eigvalsh(moment)
    low, high = eigenvalues[:, 0], eigenvalues[:, -1]
    if not (low > 0).all():
        head = int(np.argmin(low))
        raise ValueError(
            f"the query moment of head {head} has eigenvalue {low[head] - ridge:.2g} of its mean: not a second moment; "
            f"collect it in float32, or use a ridge above {ridge}"
        )
    if max_condition is not None:
        square = max_condition**2
        moment = moment + np.maximum(0.0, (high - square * low) / (square - 1))[:, None, None] * unit
    return np.linalg.cholesky(moment)


def whitened_bound(
    whitening: Float[np.ndarray, "K D D"],
    key_largest: Float[np.ndarray, "K D"],
    key_moment: Float[np.ndarray, "K D D"],
    key_count: float,
) -> np.ndarray:
    """``[K]``: no entry of ``k whitening`` is larger in magnitude for keys with these statistics.

    The smaller of two bounds on entry ``j``: ``sum_i key_largest_i |whitening_ij|``, as if all channels were at their
    largest at once; and ``sqrt(n (whitening^T M whitening)_jj)``, as if one of ``n`` keys had all the energy.
    """
    of_channels = np.einsum("kd,kde->ke", key_largest, np.abs(whitening))
    energy = np.einsum("kde,kdf,kfe->ke", whitening, key_moment, whitening, optimize=True).clip(0)
    of_energy = np.sqrt(np.where(energy > 0, energy, math.inf)) * math.sqrt(key_count)
    return np.minimum(of_channels, of_energy).max(axis=-1)


def _float64(array: Array, name: str, axes: int) -> np.ndarray:
    values = np.asarray(array, np.float64)
    if values.ndim != axes:
        raise ValueError(f"{name} has shape {values.shape}; it needs {axes} axes, heads first")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} holds {int((~np.isfinite(values)).sum())} values that are not finite; collect it again"
        )
    return values

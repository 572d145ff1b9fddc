"""Random rotations that make the coordinates of any vector look like those of a Gaussian one."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.hadamard import hadamard_matrix
from kakeya_jax.typing import Array, Float

RotationKind = Literal["haar", "hadamard"]
"""``"haar"``: uniform over SO(D). ``"hadamard"``: random signs, Walsh-Hadamard, random signs."""


def rotation_matrix(kind: RotationKind, dim: int, seed: int) -> np.ndarray:
    """The orthogonal float32 matrix ``[D, D]`` of a kind; the same for the same arguments, read-only.

    Both kinds are held as a dense matrix: a product with it is one matrix multiplication on every device,
    and it folds into queries and outputs in the same way. Attention kernels do ``"hadamard"`` by a transform, whose
    signs are those of the matrix's first row and column.

    Raises:
        ValueError: unknown kind, or a ``"hadamard"`` rotation whose ``dim`` is not a power of two.
    """
    makers = {"haar": haar_rotation, "hadamard": hadamard_rotation}
    if kind not in makers:
        raise ValueError(f"unknown rotation {kind!r}; use one of {', '.join(map(repr, makers))}")
    return makers[kind](dim, seed)


@functools.lru_cache(maxsize=256)
def haar_rotation(dim: int, seed: int) -> np.ndarray:
    """A rotation drawn uniformly from SO(D), as the TurboQuant reference draws it.

    The Q factor of a standard normal matrix of ``numpy.random.default_rng(seed)``, its columns multiplied
    by the signs of R's diagonal (which makes Q Haar distributed, Mezzadri, arXiv:math-ph/0609050), and its
    first column flipped if the determinant is negative.
    """
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return _read_only(q)


@functools.lru_cache(maxsize=256)
def hadamard_rotation(dim: int, seed: int) -> np.ndarray:
    """``diag(s2) H diag(s1) / sqrt(D)``: sign vectors ``s1``, ``s2`` drawn from ``default_rng(seed)``."""
    first, second = np.random.default_rng(seed).choice([-1.0, 1.0], (2, dim))
    return _read_only(second[:, None] * hadamard_matrix(dim) * first / np.sqrt(dim))


def rotate(x: Float[Array, "*batch D"], rotation: Float[Array, "D D"]) -> Float[Array, "*batch D"]:
    """``rotation @ x`` for every vector, float32."""
    return jnp.einsum("...d,ed->...e", x, rotation, precision=jax.lax.Precision.HIGHEST)


def unrotate(y: Float[Array, "*batch D"], rotation: Float[Array, "D D"]) -> Float[Array, "*batch D"]:
    """``rotation.T @ y`` for every vector: the inverse of ``rotate``."""
    return jnp.einsum("...e,ed->...d", y, rotation, precision=jax.lax.Precision.HIGHEST)


def _read_only(matrix: np.ndarray) -> np.ndarray:
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    matrix.flags.writeable = False
    return matrix

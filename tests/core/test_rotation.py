import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from kakeya_jax.rotation import (
    RotationKind,
    haar_rotation,
    hadamard_rotation,
    rotate,
    rotation_matrix,
    unrotate,
)


@pytest.mark.parametrize("kind", ["haar", "hadamard"])
@pytest.mark.parametrize("dim", [2, 64, 128])
def test_rotations_are_orthogonal_and_repeatable(kind: RotationKind, dim: int) -> None:
    matrix = rotation_matrix(kind, dim, seed=7)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-6)
    np.testing.assert_array_equal(matrix, rotation_matrix(kind, dim, seed=7))
    assert not np.array_equal(matrix, rotation_matrix(kind, dim, seed=8))


@pytest.mark.parametrize("seed", range(8))
def test_haar_has_determinant_one(seed: int) -> None:
    assert np.linalg.det(haar_rotation(5, seed).astype(float)) == pytest.approx(1, abs=1e-5)


def test_haar_is_the_references_construction() -> None:
    normal = np.random.default_rng(42).standard_normal((64, 64))
    q, r = np.linalg.qr(normal)
    q = q * np.sign(np.diag(r))
    # Sign-fixed, Q R = the matrix with a positive diagonal of R: the QR factorisation that is unique.
    assert (np.diag(q.T @ normal) > 0).all()
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1
    np.testing.assert_allclose(haar_rotation(64, 42), q, atol=1e-6)


def test_haar_entries_look_uniform_on_the_sphere() -> None:
    entries = np.stack([haar_rotation(16, seed) for seed in range(400)])
    np.testing.assert_allclose(entries.mean(axis=0), 0.0, atol=5 * 0.25 / 20)
    np.testing.assert_allclose((entries**2).mean(axis=0), 1 / 16, rtol=0.4)


def test_hadamard_is_signs_transform_signs() -> None:
    matrix = hadamard_rotation(32, 3)
    np.testing.assert_allclose(np.abs(matrix), 1 / np.sqrt(32), rtol=1e-6)
    first, second = np.random.default_rng(3).choice([-1.0, 1.0], (2, 32))
    x = np.random.default_rng(0).standard_normal(32)
    np.testing.assert_allclose(matrix @ x, second * (scipy.linalg.hadamard(32) @ (first * x)) / np.sqrt(32), atol=1e-6)


def test_rotate_is_the_matrix_product_and_unrotate_inverts_it() -> None:
    matrix = haar_rotation(64, 0)
    x = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    y = rotate(jnp.asarray(x), jnp.asarray(matrix))
    np.testing.assert_allclose(y, x @ matrix.T, atol=1e-5)
    np.testing.assert_allclose(unrotate(y, jnp.asarray(matrix)), x, atol=1e-5)


def test_errors() -> None:
    with pytest.raises(ValueError, match="power-of-two"):
        rotation_matrix("hadamard", 96, 0)
    with pytest.raises(ValueError, match="unknown rotation 'dct'; use one of 'haar', 'hadamard'"):
        rotation_matrix("dct", 64, 0)  # pyright: ignore[reportArgumentType]

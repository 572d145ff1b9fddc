import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from kakeya_jax import hadamard, smallrng


@pytest.mark.parametrize("length", [1, 2, 8, 64, 256])
def test_matrix_is_sylvesters(length: int) -> None:
    np.testing.assert_array_equal(hadamard.hadamard_matrix(length), scipy.linalg.hadamard(length))


def test_transform_is_orthogonal_up_to_scale() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32))
    y = hadamard.hadamard_transform(x)
    np.testing.assert_allclose(jnp.sum(y * y, axis=-1), 64 * jnp.sum(x * x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(hadamard.hadamard_transform(y) / 64, x, atol=1e-5)


def test_unrotate_inverts_rotate() -> None:
    signs = jnp.asarray(smallrng.signs(7, 32))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((10, 32)).astype(np.float32))
    rotated = hadamard.rotate(x, signs)
    np.testing.assert_allclose(rotated, (x * signs) @ scipy.linalg.hadamard(32).astype(np.float32), atol=1e-4)
    np.testing.assert_allclose(hadamard.unrotate(rotated, signs), x, atol=1e-5)


def test_rotation_spreads_a_spike() -> None:
    spike = jnp.zeros(16).at[3].set(2.0)
    np.testing.assert_array_equal(jnp.abs(hadamard.rotate(spike, jnp.asarray(smallrng.signs(1, 16)))), 2.0)


def test_next_power_of_two() -> None:
    assert [hadamard.next_power_of_two(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


@pytest.mark.parametrize("length", [0, 3, 96])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"power-of-two length, got {length}"):
        hadamard.hadamard_transform(jnp.zeros((2, length)))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.lloyd_max import dequantize, gaussian_levels, quantize
from kakeya_jax.residual_code import GroupFormat, decode_groups, encode_groups


def gaussian(n: int = 4096, length: int = 64) -> jax.Array:
    z = np.random.default_rng(0).standard_normal((n, length))
    z /= np.sqrt(np.mean(z * z, axis=1, keepdims=True))
    return jnp.asarray(z.astype(np.float32))


def error(form: GroupFormat, z: jax.Array) -> float:
    code, factor = jax.jit(encode_groups, static_argnums=1)(z, form)
    decoded = factor[:, None] * decode_groups(code, form, z.shape[1])
    return float(jnp.mean((decoded - z) ** 2))


@pytest.mark.parametrize(
    ("form", "nbytes", "expected"),
    [
        (GroupFormat(2, 3, "quantized", 3), 24, 0.0336),
        (GroupFormat(2, 4, "quantized", 4), 32, 0.00890),
        (GroupFormat(2, 3, "quantized", 1), 16, 0.220),
        (GroupFormat(4, 6, "quantized", 3), 18, 0.2519),
        (GroupFormat(8, 8, "float16", 1), 24, 0.5673),
        (GroupFormat(2, 5, "float16", 1), 84, 8.03e-4),
    ],
)
def test_error_and_bytes(form: GroupFormat, nbytes: int, expected: float) -> None:
    z = gaussian()
    code, _ = encode_groups(z[:1], form)
    assert sum(leaf.nbytes for leaf in code) == nbytes
    assert error(form, z) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("bits", "expected"), [(3, 0.982), (4, 0.965)])
def test_pairs_are_little_better_than_scalar_levels_of_equal_bits(bits: int, expected: float) -> None:
    z, levels = gaussian(), jnp.asarray(gaussian_levels(bits))
    scalar = float(jnp.mean((dequantize(quantize(z, levels), levels) - z) ** 2))
    assert error(GroupFormat(2, bits, "quantized", bits), z) / scalar == pytest.approx(expected, abs=0.005)


def test_zero_vectors_have_factor_zero() -> None:
    form = GroupFormat(2, 3, "quantized", 3)
    code, factor = encode_groups(jnp.zeros((2, 8)), form)
    np.testing.assert_array_equal(factor, 0)
    assert np.isfinite(decode_groups(code, form, 8)).all()

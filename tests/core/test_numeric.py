import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.affine import (
    dequantize_affine,
    dequantize_symmetric,
    divide_or_zero,
    quantize_affine,
    quantize_symmetric,
)
from kakeya_jax.numeric import F16_MAX, LIMIT, check_finite, finite, to_f16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_finite_clips_and_replaces(dtype: jnp.dtype) -> None:
    x = jnp.array([1.5, jnp.nan, jnp.inf, -jnp.inf, 60000.0, -0.0], dtype)
    y = finite(x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, [1.5, 0.0, LIMIT, -LIMIT, LIMIT, 0.0])


def test_to_f16_rounds_to_even_and_saturates() -> None:
    x = jnp.array([1 + 2**-11, 1 + 3 * 2**-11, 1e6, -1e30, 65519.0, 1e-9], jnp.float32)
    y = to_f16(x)
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y, np.array([1.0, 1 + 2**-9, F16_MAX, -F16_MAX, F16_MAX, 0.0], np.float16))


def test_to_f16_is_the_conversion_bit_for_bit_and_rounds_before_it() -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal(20_000) * 2.0 ** random.integers(-30, 15, 20_000)).astype(np.float32)
    x = np.clip(x, -F16_MAX, F16_MAX)
    np.testing.assert_array_equal(np.asarray(jax.jit(to_f16)(x)).view(np.uint16), x.astype(np.float16).view(np.uint16))
    # A GPU's compiler drops a conversion that is taken back; the rounding before it stays.
    assert "reduce_precision" in str(jax.make_jaxpr(to_f16)(x))


def test_check_finite_names_the_leaf() -> None:
    check_finite({"a": jnp.ones(3), "b": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"codes\['b'\] holds 2 non-finite values of 3"):
        check_finite({"a": jnp.ones(3), "b": jnp.array([1.0, jnp.nan, jnp.inf], jnp.bfloat16)}, "codes")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_affine_error_is_half_a_step_and_ends_are_kept(bits: int, axis: int) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32) + 5)
    codes, scale, minimum = quantize_affine(x, bits, axis)
    assert scale.dtype == minimum.dtype == jnp.float16
    assert int(codes.min()) == 0
    assert int(codes.max()) == 2**bits - 1
    y = dequantize_affine(codes, scale, minimum, axis)
    # Half a step, and what rounding the scale to float16 (2^-11 relative) loses at the upper end.
    bound = np.expand_dims(np.asarray(scale, np.float32), axis) * (0.5 + (2**bits - 1) * 2**-11) + 2**-9 * 1.01
    assert (np.abs(y - x) <= bound).all()


def test_affine_of_equal_values_is_their_float16() -> None:
    x = jnp.full((2, 8), 3.14159, jnp.float32)
    codes, scale, minimum = quantize_affine(x, 4, 1)
    np.testing.assert_allclose(dequantize_affine(codes, scale, minimum, 1), 3.14159, rtol=2**-11)


@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_grid_holds_zero_and_the_largest_value(bits: int) -> None:
    x = jnp.array([[-2.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]], jnp.float32)
    codes, scale = quantize_symmetric(x, bits, 1)
    y = dequantize_symmetric(codes, scale, bits, 1)
    np.testing.assert_array_equal(y[1], 0.0)
    assert float(y[0, 1]) == 0.0
    np.testing.assert_allclose(y[0, [0, 3]], [-2, 2], rtol=1e-3)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 2**bits - 2


def test_divide_or_zero() -> None:
    y = divide_or_zero(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0], jnp.float16))
    np.testing.assert_array_equal(y, [0.5, 0.0])

"""e4m3 against the casts of ``ml_dtypes``, and what is beyond its range."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.fp8 import Fp8Config, without_nan
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.eval.numpy_codecs import fp8 as oracle
from kakeya_jax.eval.random_cache import random_stream
from kakeya_jax.recipe import Recipe
from kakeya_jax.stream import read
from kakeya_jax.testing import synthetic_kv

encode = jax.jit(lambda codec, block: codec.encode(block))
recode = jax.jit(round_trip)
EVERY = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
NUMBERS = np.sort(np.unique(EVERY[np.isfinite(EVERY)]))


def plain(x: Any) -> np.ndarray:
    return np.asarray(recode(Fp8Config(scale=None).build(len(x)), jnp.asarray(x, jnp.float32)[None]))[0]


@pytest.mark.parametrize("scale", ["vector", None])
def test_codes_and_vectors_are_those_of_numpy(scale: Any):
    config = Fp8Config(scale=scale)
    x = synthetic_kv(3, 96, 64, "key").at[5].multiply(1e-4).at[6].multiply(300.0)
    codec = config.build(64)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config)
    for ours, theirs in zip(jax.tree.leaves(code), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(codec.decode(code), oracle.decode(code, config))


def test_every_number_of_the_format_is_kept():
    np.testing.assert_array_equal(plain(NUMBERS), NUMBERS)


def test_rounds_once_and_to_nearest_even():
    """Also where float16, which XLA converts through, lies on a tie."""
    middles = (NUMBERS[1:].astype(np.float64) + NUMBERS[:-1]) / 2
    expected = middles.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(plain(middles), expected)
    np.testing.assert_array_equal(plain(np.nextafter(middles.astype(np.float32), np.float32(500))), NUMBERS[1:])
    np.testing.assert_array_equal(plain(np.nextafter(middles.astype(np.float32), np.float32(-500))), NUMBERS[:-1])


def test_what_is_beyond_the_range_saturates():
    np.testing.assert_array_equal(plain([464.0, -1e30, np.inf, -np.inf, np.nan]), [448.0, -448.0, 448.0, -448.0, 0.0])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_errors_are_half_a_step_whatever_the_size_of_a_vector(size: float):
    x = size * synthetic_kv(0, 64, 64, "value")
    error = np.abs(np.asarray(recode(Fp8Config().build(64), x) - x))
    scale = np.abs(x).max(axis=1, keepdims=True) / 448
    half_step = np.maximum(np.abs(x) * 2.0**-4, scale * 2.0**-10)
    assert (error <= 1.01 * half_step).all()
    assert (error >= 0.9 * half_step).any()


def test_random_codes_are_numbers():
    assert np.isfinite(np.asarray(without_nan(jnp.arange(256, dtype=jnp.uint8))).view(ml_dtypes.float8_e4m3fn)).all()
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    cache = CompressedCache.init(shape, Recipe.named("fp8"), batch_size=1, max_length=512, dtype=jnp.float32)
    filled = random_stream(cache.layers[0].key, jax.random.key(0), length=512)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.isfinite(np.asarray(read(filled))).all()


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="fp8: scale='tensor' must be one of 'vector' or none"):
        codec_config("fp8", scale="tensor")

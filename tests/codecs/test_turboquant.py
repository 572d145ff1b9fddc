import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import cache_report
from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.cache import CacheShape
from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.turboquant import TurboQuantConfig, coordinate_levels
from kakeya_jax.eval.numpy_codecs import turboquant as oracle
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.recipe import Recipe
from kakeya_jax.rotation import haar_rotation, hadamard_rotation
from kakeya_jax.testing import synthetic_kv
from kakeya_jax.typing import StreamName

recode = jax.jit(round_trip)
encode = jax.jit(lambda codec, block: codec.encode(block))


def gaussian(n: int = 4096, d: int = 128) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((n, d)).astype(np.float32))


def mse(config: TurboQuantConfig, stream: StreamName = "value") -> float:
    x = gaussian()
    return float(jnp.mean((recode(config.build(128, stream=stream), x) - x) ** 2))


# Sampling error of 4096 vectors: 0.3 %. At five bits Lloyd levels stopped early have 0.0026.
@pytest.mark.parametrize(("bits", "expected"), [(1, 0.4005), (2, 0.1186), (3, 0.0338), (4, 0.0091), (5, 0.0024)])
def test_mse_on_gaussian_vectors(bits: int, expected: float) -> None:
    assert mse(TurboQuantConfig(bits=bits)) == pytest.approx(expected, rel=0.007)


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.228), (3, 0.0679), (4, 0.0193)])
def test_qjl_costs_about_one_bit(bits: int, expected: float) -> None:
    assert mse(TurboQuantConfig(bits=bits, qjl=True), "key") == pytest.approx(expected, rel=0.015)


def test_shrunken_sketch_has_less_error_than_the_unbiased_one() -> None:
    unbiased = TurboQuantConfig(bits=3, qjl=True)
    shrunken = dataclasses.replace(unbiased, qjl_shrinkage=2 / math.pi)
    # Per unit of residual energy pi/2 - 1 falls to 1 - 2/pi.
    assert mse(shrunken) / mse(unbiased) == pytest.approx((1 - 2 / math.pi) / (math.pi / 2 - 1), rel=0.01)


def test_qjl_makes_inner_products_unbiased() -> None:
    x = gaussian()
    for config, slope in ((TurboQuantConfig(bits=2, qjl=True), 1.0), (TurboQuantConfig(bits=1), 0.797)):
        y = recode(config.build(128), x)
        assert float(jnp.sum(x * y) / jnp.sum(x * x)) == pytest.approx(slope, abs=0.005)


@pytest.mark.parametrize(
    "config",
    [
        TurboQuantConfig(bits=2),
        TurboQuantConfig(bits=3),
        TurboQuantConfig(bits=4, norm_correction=False),
        TurboQuantConfig(bits=3, rotation="hadamard"),
        TurboQuantConfig(bits=3, qjl=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", ["key", "value"])
def test_codes_and_vectors_are_those_of_numpy(config: TurboQuantConfig, stream: StreamName) -> None:
    x = synthetic_kv(0, 256, 64, stream)
    codec = config.build(64, stream=stream, layer=2)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config, stream, layer=2)
    bits = config.bits - config.qjl
    indices = np.asarray(codec.indices_of(code))
    assert (indices == unpack(np.asarray(expected.indices), bits, 64)).mean() > 0.999  # products round differently
    np.testing.assert_allclose(code.scale, expected.scale, rtol=2e-3)
    if code.residual_norm is not None and expected.residual_norm is not None:
        assert (np.asarray(code.signs) == np.asarray(expected.signs)).mean() > 0.999
        np.testing.assert_allclose(code.residual_norm, expected.residual_norm, rtol=0.02)
    plain = dataclasses.replace(code, indices=pack(indices, bits))
    decoded = oracle.decode(plain, config, 64, stream, layer=2)
    np.testing.assert_allclose(codec.decode(code), decoded, atol=1e-4 * float(jnp.abs(x).max()))


def test_norm_correction_gives_every_vector_its_norm() -> None:
    x = synthetic_kv(0, 128, 128, "value")
    norm = jnp.linalg.norm(x, axis=1)
    for bits in (1, 2, 4):
        y = recode(TurboQuantConfig(bits=bits).build(128), x)
        np.testing.assert_allclose(jnp.linalg.norm(y, axis=1), norm, rtol=2**-10.5)
    y = recode(TurboQuantConfig(bits=2, norm_correction=False).build(128), x)
    assert float(jnp.abs(jnp.linalg.norm(y, axis=1) / norm - 1).max()) > 0.01


@pytest.mark.parametrize(
    ("layer", "stream", "seed"), [(0, "key", 42), (0, "value", 43), (5, "key", 52), (5, "value", 53)]
)
def test_rotation_seeds(layer: int, stream: StreamName, seed: int) -> None:
    codec = TurboQuantConfig(qjl=True).build(32, layer=layer, stream=stream)
    np.testing.assert_array_equal(codec.rotation, haar_rotation(32, seed))
    assert codec.sketch is not None
    np.testing.assert_array_equal(codec.sketch, haar_rotation(32, seed + 1000))
    shipped = TurboQuantConfig(rotation="hadamard").build(32, layer=layer, stream=stream)
    np.testing.assert_array_equal(shipped.rotation, hadamard_rotation(32, seed))


def test_levels() -> None:
    np.testing.assert_allclose(coordinate_levels(1), [-0.79788456, 0.79788456], rtol=1e-7)
    np.testing.assert_allclose(coordinate_levels(2), [-1.51, -0.453, 0.453, 1.51], rtol=2e-3)  # as bytes
    for bits in (2, 3, 4):
        table, unit = byte_levels(tuple(map(float, coordinate_levels(bits))))
        np.testing.assert_allclose(coordinate_levels(bits), unit * (np.array(table) + 0.5), rtol=1e-6)
    assert coordinate_levels(8).shape == (256,)


def test_bits_per_value() -> None:
    code = TurboQuantConfig(bits=2).build(128).encode(gaussian(128))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(code)) * 8 / (128 * 128) == 2.125


@pytest.mark.parametrize(("bits", "ratio"), [(2, 2.774), (3, 2.582)])
def test_recipe_as_shipped_by_turboquant_plus_has_its_bits(bits: int, ratio: float) -> None:
    """q8_0 keys, turbo2 or turbo3 values, and the values of two layers at each end at q8_0."""
    recipe = Recipe.parse(
        "key=int8(group_size=32),value[0,1,-2,-1]=int8(group_size=32),"
        f"value=turboquant(bits={bits},rotation=hadamard),sinks=0"
    )
    shape = CacheShape(num_layers=28, num_kv_heads=2, head_dim=128)
    report = cache_report(shape, recipe, max_length=1024)
    stored = [8 * (part.payload + part.side) / part.coded_values for part in report.streams]
    assert stored[::2] == [8.5] * 28
    assert stored[1::2] == [8.5] * 2 + [bits + 0.125] * 24 + [8.5] * 2
    assert 16 / report.all_in_bits_per_value == pytest.approx(ratio, abs=0.0005)


def test_zero_and_tiny_vectors_are_zero() -> None:
    x = gaussian(4).at[1].set(0.0).at[2].set(1e-8)
    for config in (TurboQuantConfig(bits=2), TurboQuantConfig(bits=3, qjl=True)):
        y = recode(config.build(128), x)
        np.testing.assert_array_equal(y[1:3], 0.0)
        assert float(jnp.abs(y[0]).min()) > 0


def test_other_rotations_do_not_retrace() -> None:
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(lambda codec, x: codec.decode(codec.encode(x)), n=1))
    for layer in range(3):
        traced(TurboQuantConfig(bits=2).build(32, layer=layer), gaussian(8, 32))


def test_errors() -> None:
    with pytest.raises(ValueError, match="bits=9 must be between 1 and 8"):
        TurboQuantConfig(bits=9)
    with pytest.raises(ValueError, match="bits=1 must be between 2 and 8"):
        TurboQuantConfig(bits=1, qjl=True)
    with pytest.raises(ValueError, match="qjl_shrinkage=0"):
        TurboQuantConfig(qjl_shrinkage=0.0)
    with pytest.raises(ValueError, match="rotation='dct' must be one of"):
        TurboQuantConfig(rotation="dct")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="power-of-two"):
        TurboQuantConfig(rotation="hadamard").build(96)

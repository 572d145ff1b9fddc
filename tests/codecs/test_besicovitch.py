import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.besicovitch import BesicovitchConfig
from kakeya_jax.eval.numpy_codecs import besicovitch as oracle
from kakeya_jax.testing import synthetic_kv

recode = jax.jit(round_trip)
encode = jax.jit(lambda codec, block: codec.encode(block))


def gaussian_mse(**options: object) -> float:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4096, 128)).astype(np.float32))
    codec = BesicovitchConfig(subtract_mean=False, **options).build(128)  # pyright: ignore[reportArgumentType]
    return float(jnp.mean((recode(codec, x) - x) ** 2))


@pytest.mark.parametrize(
    "config",
    [
        BesicovitchConfig(),
        BesicovitchConfig(direction_bits=6, magnitude="float16"),
        BesicovitchConfig(magnitude_bits=3, magnitude_levels="reference"),
        BesicovitchConfig(group_size=4, direction_bits=6, subtract_mean=False),
    ],
    ids=str,
)
def test_codes_and_vectors_are_those_of_numpy(config: BesicovitchConfig) -> None:
    x = synthetic_kv(0, 128, 64, "key")
    codec = config.build(64)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config)
    assert (np.asarray(code.directions) == np.asarray(expected.directions)).mean() > 0.999
    assert np.mean(np.asarray(code.magnitudes) == np.asarray(expected.magnitudes)) > 0.99
    if code.mean is not None and expected.mean is not None:
        np.testing.assert_allclose(code.mean, expected.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(codec.decode(code), oracle.decode(code, config, 64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [BesicovitchConfig(), BesicovitchConfig(direction_bits=2, magnitude_bits=3)], ids=str
)
def test_values_lie_in_tiles_as_kernels_read_them(config: BesicovitchConfig) -> None:
    """The same directions, magnitudes and bytes as those of a codec of keys, and the tiles of numpy."""
    x = synthetic_kv(0, 128, 64, "value")
    codec, in_rows = config.build(64, stream="value"), config.build(64)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config, "value")
    assert code.pairs is not None
    assert code.directions is None
    assert code.magnitudes is None
    assert code.pairs.size == 128 * 32 * codec.width // 8
    assert (np.asarray(code.pairs) == np.asarray(expected.pairs)).mean() > 0.999
    np.testing.assert_array_equal(codec.decode(code), in_rows.decode(encode(in_rows, x)))
    np.testing.assert_allclose(codec.decode(code), oracle.decode(code, config, 64, "value"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "n", "d"),
    [
        ({"group_size": 4}, 128, 64),
        ({"direction_bits": 5}, 128, 64),
        ({"magnitude": "float16"}, 128, 64),
        ({}, 96, 64),
        ({}, 128, 48),
    ],
)
def test_values_of_other_forms_lie_in_rows(options: dict, n: int, d: int) -> None:
    code = jax.eval_shape(BesicovitchConfig(**options).build(d, stream="value").encode, jnp.zeros((n, d)))
    assert code.pairs is None
    assert len(code.directions) == len(code.magnitudes) == n


# Pairs, float16 magnitude: the angle is off by up to pi / 2M, so the error is 1 - sinc(pi / M) of the energy.
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_direction_error_is_that_of_a_uniform_angle(bits: int) -> None:
    width = np.pi / 2**bits
    expected = 0.5 - np.sin(width) / (2 * width)
    assert gaussian_mse(direction_bits=bits, magnitude="float16") == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("bits", "reachable", "reference"),
    [(1, 0.2201, 0.9673), (2, 0.0824, 0.2413), (3, 0.03371, 0.1043), (4, 0.01853, 0.03925)],
)
def test_reachable_levels_beat_the_reference(bits: int, reachable: float, reference: float) -> None:
    assert gaussian_mse(magnitude_bits=bits) == pytest.approx(reachable, rel=0.02)
    measured = gaussian_mse(magnitude_bits=bits, magnitude_levels="reference")
    assert measured == pytest.approx(reference, rel=0.02)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_all_reachable_levels_are_used_and_the_reference_wastes_some(bits: int) -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1024, 128)).astype(np.float32))

    def used(levels: str) -> int:
        config = BesicovitchConfig(magnitude_bits=bits, magnitude_levels=levels)  # pyright: ignore[reportArgumentType]
        code = encode(config.build(128), x)
        index = oracle.unpack(np.asarray(code.magnitudes), bits, 64)
        return int((np.bincount(index.ravel(), minlength=2**bits) > 0.005 * index.size).sum())

    assert used("reachable") == 2**bits
    if bits >= 3:
        assert used("reference") == 2 ** (bits - 1)


def test_mean_is_the_blocks_and_helps_keys() -> None:
    x = synthetic_kv(0, 128, 64, "key")
    code = encode(BesicovitchConfig().build(64), x)
    np.testing.assert_allclose(code.mean, x.mean(axis=0), rtol=2e-3, atol=1e-3)

    def error(config: BesicovitchConfig) -> float:
        return float(jnp.mean((recode(config.build(64), x) - x) ** 2))

    with_mean = BesicovitchConfig()
    assert error(with_mean) < 0.3 * error(dataclasses.replace(with_mean, subtract_mean=False))


def test_a_vector_equal_to_the_mean_decodes_to_it() -> None:
    x = jnp.full((8, 16), 1.5)
    np.testing.assert_array_equal(recode(BesicovitchConfig(block_size=8).build(16), x), x)


def test_published_bytes() -> None:
    code = jax.eval_shape(BesicovitchConfig(block_size=1024).build(128).encode, jnp.zeros((1024, 128)))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(code)) / 1024 == 58.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size=1 must be between 2 and 8"),
        ({"direction_bits": 11}, "direction_bits=11 must be between 1 and 10"),
        ({"magnitude_bits": 5}, "magnitude_bits=5 must be between 1 and 4"),
        ({"magnitude": "f16"}, "magnitude='f16' must be one of 'quantized', 'float16'"),
        ({"magnitude_levels": "all"}, "magnitude_levels='all' must be"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BesicovitchConfig(**options)


def test_group_size_must_divide_the_head_dimension() -> None:
    with pytest.raises(ValueError, match="group_size=3 must divide head_dim=64"):
        BesicovitchConfig(group_size=3).build(64)

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kakeya_jax import lloyd_max


def gaussian_mse(levels: np.ndarray) -> float:
    """Expected squared error on N(0, 1), by numerical integration over each cell."""
    edges = [-12.0, *((levels[1:] + levels[:-1]) / 2).astype(float), 12.0]
    cells = zip(levels.astype(float), edges[:-1], edges[1:], strict=True)
    pdf = scipy.stats.norm.pdf
    return sum(scipy.integrate.quad(lambda x, c=c: (x - c) ** 2 * pdf(x), lo, hi)[0] for c, lo, hi in cells)


def test_published_tables_digit_for_digit() -> None:
    np.testing.assert_array_equal(lloyd_max.gaussian_levels(1), np.array([-0.798156, 0.798156], np.float32))
    np.testing.assert_array_equal(lloyd_max.gaussian_levels(2), np.array([-1.510, -0.4528, 0.4528, 1.510], np.float32))
    np.testing.assert_array_equal(
        lloyd_max.gaussian_levels(3)[4:], np.array([0.244943, 0.756268, 1.343757, 2.151945], np.float32)
    )
    np.testing.assert_array_equal(
        lloyd_max.gaussian_levels(4)[8:],
        np.array([0.1281, 0.3885, 0.6566, 0.9422, 1.2563, 1.6177, 2.0690, 2.7322], np.float32),
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_gaussian_levels_are_symmetric_ascending_read_only(bits: int) -> None:
    levels = lloyd_max.gaussian_levels(bits)
    assert levels.shape == (2**bits,)
    assert levels.dtype == np.float32
    assert (np.diff(levels) > 0).all()
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert not levels.flags.writeable


@pytest.mark.parametrize(
    ("bits", "optimum"),  # Max 1960, table I, and Lloyd's tables
    [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499), (6, 0.0006442)],
)
def test_mean_squared_error_is_the_known_optimum(bits: int, optimum: float) -> None:
    assert gaussian_mse(lloyd_max.gaussian_levels(bits)) == pytest.approx(optimum, rel=3e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@given(seed=st.integers(0, 2**32 - 1))
def test_quantize_takes_the_nearest_level(bits: int, seed: int) -> None:
    levels = lloyd_max.gaussian_levels(bits)
    values = 2 * np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    index = np.asarray(lloyd_max.quantize(jnp.asarray(values), jnp.asarray(levels)))
    np.testing.assert_array_equal(index, np.searchsorted(lloyd_max.midpoints(levels), values, side="left"))
    distance = np.abs(values[:, None].astype(float) - levels)
    np.testing.assert_allclose(distance[np.arange(64), index], distance.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_the_lower_level_wins_at_midpoints(bits: int) -> None:
    levels = np.arange(2**bits, dtype=np.float32)
    index = lloyd_max.quantize(jnp.asarray(levels[:-1] + 0.5), jnp.asarray(levels))
    np.testing.assert_array_equal(index, np.arange(2**bits - 1))
    assert index.dtype == jnp.int32


def test_infinities_take_the_outer_levels() -> None:
    levels = jnp.asarray(lloyd_max.gaussian_levels(3))
    np.testing.assert_array_equal(lloyd_max.quantize(jnp.array([-jnp.inf, jnp.inf]), levels), [0, 7])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 16, 32, 256])
def test_dequantize_looks_up_exactly(count: int) -> None:
    levels = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    index = np.random.default_rng(1).integers(0, count, (5, 7)).astype(np.int32)
    got = jax.jit(lloyd_max.dequantize)(jnp.asarray(index), jnp.asarray(levels))
    np.testing.assert_array_equal(got, levels[index])


def test_fit_levels_is_stationary_and_better_than_gaussian() -> None:
    samples = np.random.default_rng(0).laplace(size=200_000).astype(np.float32) / np.float32(np.sqrt(2))
    fitted = lloyd_max.fit_levels(samples, 3, iterations=200)
    index = np.searchsorted(lloyd_max.midpoints(fitted), samples)
    means = [samples[index == k].mean(dtype=np.float64) for k in range(8)]
    np.testing.assert_allclose(fitted, means, atol=1e-3)

    def error(levels: np.ndarray) -> float:
        return float(np.mean((samples - levels[np.searchsorted(lloyd_max.midpoints(levels), samples)]) ** 2))

    assert error(fitted) < 0.94 * error(lloyd_max.gaussian_levels(3))


def test_fit_levels_of_gaussian_samples_are_the_gaussian_levels() -> None:
    samples = scipy.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    np.testing.assert_allclose(lloyd_max.fit_levels(samples, 2), lloyd_max.gaussian_levels(2), atol=2e-3)


def test_fit_levels_keeps_levels_without_samples() -> None:
    fitted = lloyd_max.fit_levels(jnp.full((10,), 5.0), 2)
    np.testing.assert_array_equal(fitted, np.array([-1.510, -0.4528, 0.4528, 5.0], np.float32))


def test_fit_levels_obeys_its_iteration_bound() -> None:
    samples = np.random.default_rng(0).exponential(size=10_000)
    np.testing.assert_array_equal(lloyd_max.fit_levels(samples, 2, iterations=0), lloyd_max.gaussian_levels(2))
    once, often = (lloyd_max.fit_levels(samples, 2, iterations=i) for i in (1, 200))
    assert np.abs(once - often).max() > 1e-3


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_table_files_round_trip(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "levels.f32"
    lloyd_max.write_levels(path, lloyd_max.gaussian_levels(bits))
    assert path.stat().st_size == 4 * 2**bits
    np.testing.assert_array_equal(lloyd_max.read_levels(path, bits), lloyd_max.gaussian_levels(bits))


def test_table_files_are_raw_little_endian_float32(tmp_path: Path) -> None:
    path = tmp_path / "levels.f32"
    path.write_bytes(bytes.fromhex("0000c0bf000000bf0000003f0000c03f"))
    np.testing.assert_array_equal(lloyd_max.read_levels(path, 2), [-1.5, -0.5, 0.5, 1.5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 1.0, 2.0], "are 16 bytes, not 12"),
        ([0.0, 1.0, 1.0, 2.0], "strictly ascending"),
        ([0.0, 1.0, np.nan, 2.0], "finite"),
        ([0.0, 1.0, 2.0, np.inf], "finite"),
    ],
)
def test_bad_table_files_are_refused(tmp_path: Path, values: list[float], message: str) -> None:
    path = tmp_path / "levels.f32"
    path.write_bytes(np.array(values, "<f4").tobytes())
    with pytest.raises(ValueError, match=message):
        lloyd_max.read_levels(path, 2)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bits=9 must be between 1 and 8"):
        lloyd_max.gaussian_levels(9)
    with pytest.raises(ValueError, match="needs samples"):
        lloyd_max.fit_levels(jnp.zeros((0,)), 2)
    with pytest.raises(ValueError, match="holds 1 non-finite"):
        lloyd_max.fit_levels(jnp.array([0.0, jnp.nan]), 2)
    with pytest.raises(ValueError, match="strictly ascending"):
        lloyd_max.write_levels(tmp_path / "x", np.array([1, 0], np.float32))
    with pytest.raises(ValueError, match="shape"):
        lloyd_max.write_levels(tmp_path / "x", np.array([0, 1, 2], np.float32))

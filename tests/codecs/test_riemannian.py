from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import fitted_nbytes
from kakeya_jax.codec import round_trip
from kakeya_jax.codecs import riemannian
from kakeya_jax.codecs.fitting import fit_own_tables
from kakeya_jax.codecs.riemannian import RiemannianConfig, fit_centroids, fit_scales, fit_tables
from kakeya_jax.eval.numpy_codecs import riemannian as oracle
from kakeya_jax.testing import synthetic_kv

recode = jax.jit(round_trip)
encode = jax.jit(lambda codec, block: codec.encode(block))


def gaussian(deviations: np.ndarray, n: int = 4096) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((n, len(deviations))) * deviations).astype(np.float32)


def error(config: RiemannianConfig, x: jax.Array, tables: Any) -> float:
    y = recode(config.build(x.shape[-1], tables=tables), x)
    return float(jnp.sum((y - x) ** 2) / jnp.sum(x**2))


@pytest.mark.parametrize(
    "options",
    [
        {"direction_bits": 3},
        {"direction_bits": 6, "magnitude_bits": 3, "scale_mode": "pct99"},
        {"centroids": "quantile", "scale_mode": "sqrt_trace", "subtract_mean": False},
        {"centroids": "gaussian"},
        {"direction_bits": 8, "magnitude": "float16"},
    ],
    ids=str,
)
def test_codes_and_vectors_are_those_of_numpy(options: dict[str, Any]) -> None:
    config, x = RiemannianConfig(**options), synthetic_kv(0, 128, 64, "key")
    tables = fit_tables(config, x[None])
    codec = config.build(64, tables=tables)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config, tables)
    assert np.mean(np.asarray(code.directions) == np.asarray(expected.directions)) > 0.995
    assert np.mean(np.asarray(code.magnitudes) == np.asarray(expected.magnitudes)) > 0.99
    if code.mean is not None and expected.mean is not None:
        np.testing.assert_allclose(code.mean, expected.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(codec.decode(code), oracle.decode(code, config, tables, 64), rtol=1e-5, atol=1e-5)


def test_scales_are_the_statistics_they_are_called_after() -> None:
    """For a Gaussian pair of deviation ``s``: the projection is almost Rayleigh, of rms ``s sqrt 2``."""
    deviations = np.array([1.0, 1.0, 5.0, 5.0, 0.0, 0.0])
    x = gaussian(deviations, 40_000)
    expected = {
        "sqrt_trace": 1.0,
        "rms": np.sqrt(2),
        "pct95": np.sqrt(-2 * np.log(0.05)) / 2.7,
        "pct99": np.sqrt(-2 * np.log(0.01)) / 2.7,
        "pct999": np.sqrt(-2 * np.log(0.001)) / 2.7,
    }
    for mode, scale in expected.items():
        fitted = fit_scales(x, mode)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(fitted[:2], [scale, 5 * scale], rtol=0.02)
        assert fitted.dtype == np.float32
        assert 0 < fitted[2] < 1e-5


def test_scales_do_not_depend_on_the_codecs_directions_but_on_what_it_sees() -> None:
    x = synthetic_kv(0, 256, 64, "key").reshape(2, 128, 64)
    few, many = (fit_tables(RiemannianConfig(direction_bits=bits), x)["scales"] for bits in (1, 8))
    np.testing.assert_array_equal(few, many)
    with_mean = fit_tables(RiemannianConfig(subtract_mean=False), x)["scales"]
    assert (with_mean > 1.1 * few).mean() > 0.5


def test_calibrated_levels_leave_none_unused_and_beat_the_others() -> None:
    x = jnp.asarray(gaussian(np.repeat([1.0, 3.0, 0.2, 1.0], 4)))
    errors = {}
    for centroids in ("calibrated", "gaussian", "quantile"):
        config = RiemannianConfig(centroids=centroids, block_size=512)  # pyright: ignore[reportArgumentType]
        errors[centroids] = error(config, x, fit_tables(config, x[None, :512]))
    assert errors["calibrated"] < errors["gaussian"] < errors["quantile"]
    config = RiemannianConfig(block_size=512)
    code = encode(config.build(16, tables=fit_tables(config, x[None])), x)
    used = np.bincount(oracle.unpack(np.asarray(code.magnitudes), 4, 8).ravel(), minlength=16)
    assert used.min() > 0.005 * used.sum()


def test_with_calibrated_levels_the_scale_mode_hardly_matters() -> None:
    x = synthetic_kv(0, 1024, 64, "value")
    errors = []
    for mode in ("sqrt_trace", "rms", "pct95", "pct99"):
        config = RiemannianConfig(scale_mode=mode)  # pyright: ignore[reportArgumentType]
        errors.append(error(config, x, fit_tables(config, x.reshape(8, 128, 64))))
    assert max(errors) < 1.05 * min(errors)


def test_centroids_are_the_levels_of_a_two_sided_rayleigh() -> None:
    """Its Lloyd-Max levels, from the Rayleigh density: 1 bit is plus and minus the mean ``sqrt(pi / 2)``."""
    config = RiemannianConfig(direction_bits=8, scale_mode="sqrt_trace", subtract_mean=False)
    x = jnp.asarray(gaussian(np.ones(16), 20_000))
    units = riemannian.unit_magnitudes(config, x[None], np.ones(8, np.float32))
    np.testing.assert_allclose(fit_centroids(units, 1), np.sqrt(np.pi / 2) * np.array([-1, 1]), rtol=0.01)
    four = fit_centroids(units, 4)
    np.testing.assert_allclose(four, -four[::-1], atol=0.05)
    assert (np.diff(four) > 0).all()
    assert np.abs(four).min() > 0.25  # no level is wasted near zero


def test_pooled_levels_are_one_table_for_all_layers() -> None:
    layers = [np.asarray(synthetic_kv(seed, 256, 16, "key")).reshape(1, 1, 256, 16) for seed in range(2)]
    pooled = fit_own_tables(RiemannianConfig(centroids="pooled"), layers)
    alone = fit_own_tables(RiemannianConfig(), layers)
    np.testing.assert_array_equal(pooled[0]["centroids"], pooled[1]["centroids"])
    assert not np.array_equal(alone[0]["centroids"], alone[1]["centroids"])
    for one, other in zip(pooled, alone, strict=True):
        np.testing.assert_array_equal(one["scales"], other["scales"])


def test_fitted_tables_are_charged() -> None:
    config = RiemannianConfig()
    assert fitted_nbytes(config.build(64, tables=config.neutral_tables(64))) == 4 * 32 + 4 * 16
    assert fitted_nbytes(RiemannianConfig(magnitude="float16").build(64)) == 0


def test_needed_tables_follow_from_the_options() -> None:
    assert RiemannianConfig().needs_tables() == ("scales", "centroids")
    assert RiemannianConfig(centroids="gaussian").needs_tables() == ("scales",)
    assert RiemannianConfig(magnitude="float16").needs_tables() == ()
    assert RiemannianConfig(magnitude="float16", whiten=True).needs_tables() == ("whitening", "unwhitening")
    for config in (RiemannianConfig(), RiemannianConfig(centroids="quantile", static_mean=True)):
        assert set(config.needs_tables()) <= set(config.neutral_tables(64))


def test_published_bytes() -> None:
    """Recipes F1 and F2: 6 + 4 and 5 + 4 bits for each of 64 pairs, and the mean of 1024 vectors."""
    for bits, expected in ((6, 80.25), (5, 72.25)):
        config = RiemannianConfig(direction_bits=bits, block_size=1024)
        code = jax.eval_shape(config.build(128, tables=config.neutral_tables(128)).encode, jnp.zeros((1024, 128)))
        assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(code)) / 1024 == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction_bits": 9}, "direction_bits=9 must be between 1 and 8"),
        ({"magnitude_bits": 0}, "magnitude_bits=0 must be between 1 and 4"),
        ({"scale_mode": "max"}, "scale_mode='max' must be one of 'sqrt_trace'"),
        ({"centroids": "fitted"}, "centroids='fitted' must be one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RiemannianConfig(**options)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "needs the table 'scales'; fit it with `kakeya calibrate`"),
        ({"scales": jnp.ones(3)}, r"table 'scales' has shape \(3,\), needs \(8,\)"),
        ({"scales": jnp.ones(8)}, "needs the table 'centroids'"),
        ({"scales": jnp.ones(8), "centroids": jnp.zeros(16)}, "must ascend strictly"),
    ],
)
def test_bad_tables(tables: dict[str, jax.Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RiemannianConfig().build(16, tables=tables)


def test_bad_samples() -> None:
    with pytest.raises(ValueError, match="even head_dim, got 15"):
        RiemannianConfig(magnitude="float16").build(15)
    with pytest.raises(ValueError, match="non-finite"):
        fit_scales(np.full((2, 4), np.nan), "rms")
    with pytest.raises(ValueError, match="got an empty array"):
        fit_scales(np.zeros((0, 4)), "rms")
    with pytest.raises(ValueError, match="mode='mean' must be one of"):
        fit_scales(np.ones((2, 4)), "mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="too few values for 4 levels"):
        fit_centroids(np.ones(100), 2)
    with pytest.raises(ValueError, match="passages of 64 tokens are shorter than block_size=128"):
        fit_own_tables(RiemannianConfig(), [np.ones((1, 1, 64, 16))])

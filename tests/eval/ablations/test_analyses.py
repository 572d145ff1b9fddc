"""Stages add up to the codec's own error; rotations are rotations; timing cells give what the model of speed needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.kakeya_config import KakeyaConfig
from kakeya_jax.eval.ablations import rotation, stages
from kakeya_jax.eval.ablations.rotated_values import RotatedValuesCell
from kakeya_jax.eval.ablations.speed_ceiling import CeilingCell
from kakeya_jax.testing import synthetic_kv


@pytest.mark.parametrize("rank", [None, 0.5])
def test_stages_end_at_the_codecs_round_trip_and_add_up(rank):
    config = KakeyaConfig(bits=3, rank=rank, block_size=128, kmeans_centers=4, kmeans_iterations=4)
    block = synthetic_kv(3, 128, 32, "key")
    after, without = stages.stage_reconstructions(config, block)
    np.testing.assert_allclose(after[-1], round_trip(config.build(32), block), atol=1e-4)
    off = KakeyaConfig(bits=3, rank=rank, block_size=128, kmeans_centers=0)
    np.testing.assert_allclose(without, round_trip(off.build(32), block), atol=1e-4)
    energies = {name: float(value) for name, value in stages.stage_energies(config, block, jnp.eye(32)).items()}
    assert sum(energies[name] for name in stages.STAGES) == pytest.approx(energies["total"], rel=1e-4)
    assert energies["total"] == pytest.approx(float(jnp.sum((block - after[-1]) ** 2)), rel=1e-4)
    assert energies["quantiser"] > 0.5 * energies["total"] or rank
    assert abs(energies["skeleton as float16"]) < 1e-3 * energies["signal"]
    assert energies["rank"] > 100 * energies["scalars as float16"] if rank else energies["rank"] < 1e-5


def test_stages_cell(tiny_setup):
    row = stages.StagesCell(label="K", stream="key", layer=1, rank=0.5).measure(tiny_setup)
    for metric in ("plain", "attention"):
        shares = row[metric]
        assert sum(shares[name] for name in stages.STAGES) == pytest.approx(shares["total"], rel=1e-3)
        assert 0 < shares["total"] < 1
    assert "attention" not in stages.StagesCell(label="V", stream="value", layer=0, rank=None).measure(tiny_setup)


def test_no_rotation_helps_isotropic_vectors_much_and_oracles_never_hurt():
    x = jax.random.normal(jax.random.key(0), (256, 16))
    energy = float(jnp.sum(x * x))
    plain = float(rotation.direction_error(x)) / energy
    assert plain == pytest.approx(0.01279, rel=0.05)  # 1/2 - 4 sin(pi / 8) / pi
    best = float(rotation.best_of_draws(x, draws=4)) / energy
    assert best <= float(rotation.mean_of_draws(x, draws=4)) / energy
    assert float(rotation.best_angles(x, angles=4)) / energy <= plain * (1 + 1e-5)
    found = float(rotation.optimised(x, steps=5)) / energy
    assert 0.8 * plain < found <= plain * (1 + 1e-5)


def test_a_rotation_that_fits_is_found():
    """Vectors on the lines of the table lose nothing; turned off them, the best angle finds them again."""
    angle = np.pi / 8 * np.random.default_rng(0).integers(0, 8, (64, 4))
    pairs = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(64, 8).astype(np.float32)
    assert float(rotation.direction_error(jnp.asarray(pairs))) < 1e-9
    turn = np.kron(np.eye(4), [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]).astype(np.float32)
    turned = jnp.asarray(pairs @ turn.T)
    assert float(rotation.direction_error(turned)) > 1.0
    assert float(rotation.best_angles(turned, angles=64)) < 0.01


def test_rotation_cells(tiny_setup):
    row = rotation.RotationCell(label="none", stream="value", turn="none").measure(tiny_setup)
    assert row["ratio"] == pytest.approx(1.0)
    assert row["blocks"] == 2 * 2 * 2  # layers, heads, passages
    pca = rotation.RotationCell(label="pca", stream="key", turn="pca").measure(tiny_setup)
    assert 0.5 < pca["ratio"] < 1.5
    assert pca["ratio_ci95"][0] <= pca["ratio"] <= pca["ratio_ci95"][1]


def test_timing_cells(tiny_setup):
    row = CeilingCell(label="256 tokens", context=256).measure(tiny_setup)
    assert 0 <= row["p"] < 1
    assert row["h"] > 0
    assert row["speedup"]["0"]["free"] >= row["speedup"]["0.5"]["free"] >= 1
    assert row["speedup"]["0"]["with_choice"] < row["speedup"]["0"]["free"]
    values = RotatedValuesCell(label="haar", rotation="haar", bits=2).measure(tiny_setup)
    assert 0 < values["relative_difference"] < 1e-5
    assert values["multiplications"]["decode_then_sum"] > 5 * values["multiplications"]["sum_then_rotate"]

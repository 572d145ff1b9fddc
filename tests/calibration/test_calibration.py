import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.calibration.artifact import Calibration, fingerprint, load_calibration, text_windows
from kakeya_jax.calibration.fit import dense_vectors, fit
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope=Rope(head_dim=16),
    max_position_embeddings=128,
    tie_word_embeddings=True,
)
RECIPE = Recipe.parse(
    "key=kakeya(bits=2,basis=shared,rank=8,centroids=calibrated,block_size=32,kmeans_centers=4),"
    "value=kakeya(bits=2,centroids=calibrated,block_size=32,kmeans_centers=4),sinks=2,recent=4"
)


@pytest.fixture(scope="module")
def model_and_params():
    model = Decoder(CONFIG)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


@pytest.fixture(scope="module")
def passages() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 64, (3, 96), np.int32)


@pytest.fixture(scope="module")
def calibration(model_and_params, passages) -> Calibration:
    model, params = model_and_params
    return fit(model, params, passages, RECIPE, about={"corpus": "random"})


def test_fitted_tables_serve_a_stream(model_and_params, calibration: Calibration):
    model, params = model_and_params
    with pytest.raises(ValueError, match="needs the table 'mean'"):
        CompressedCache.init(CONFIG, RECIPE, batch_size=1, max_length=96)
    cache = CompressedCache.init(CONFIG, RECIPE, batch_size=1, max_length=96, tables=calibration.tables)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (1, 96)))
    logits, _ = jax.jit(model.apply)({"params": params}, tokens, cache=cache)
    assert bool(jnp.isfinite(logits).all())
    assert set(calibration.tables[0, "key"]) == {"mean", "basis", "centroids"}
    assert set(calibration.tables[1, "value"]) == {"centroids"}


def test_shared_basis_holds_the_energy_of_new_text(model_and_params, calibration: Calibration):
    """A basis fitted on one text must catch more energy of another than a random basis of its rank would."""
    model, params = model_and_params
    vectors = dense_vectors(model, params, jnp.asarray(np.random.default_rng(2).integers(0, 64, 96)))
    key = vectors[0]["key"].reshape(-1, 16)
    tables = calibration.tables[0, "key"]
    centered = key - tables["mean"]
    kept = jnp.sum((centered @ tables["basis"].T) ** 2) / jnp.sum(centered**2)
    assert 0.6 < float(kept) < 1.0


def test_file_round_trip(calibration: Calibration, tmp_path):
    calibration.save(tmp_path / "c")
    loaded = load_calibration(tmp_path / "c")
    assert dataclasses.replace(loaded, tables={}) == dataclasses.replace(calibration, tables={})
    jax.tree.map(np.testing.assert_array_equal, loaded.tables, calibration.tables)


def test_truncated_altered_and_foreign_files_are_refused(calibration: Calibration, tmp_path):
    path = tmp_path / "c"
    calibration.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="truncated"):
        load_calibration(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="was altered"):
        load_calibration(path)
    safetensors.numpy.save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match="not a kakeya-calibration file"):
        load_calibration(path)
    with pytest.raises(FileNotFoundError):
        load_calibration(tmp_path / "nothing")


def test_another_model_is_refused(model_and_params, calibration: Calibration):
    _, params = model_and_params
    calibration.check_model(CONFIG, params)
    with pytest.raises(ValueError, match="head_dim 16; this one has 3 layers, 2 key/value heads, head_dim 16"):
        calibration.check_model(CacheShape(num_layers=3, num_kv_heads=2, head_dim=16), params)
    trained_on = jax.tree.map(lambda x: x * 1.01, params)
    with pytest.raises(ValueError, match="fitted for other weights"):
        calibration.check_model(CONFIG, trained_on)
    assert fingerprint(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)) == fingerprint(params)


def test_calibration_text_is_refused_at_any_offset(calibration: Calibration, passages: np.ndarray):
    other = np.random.default_rng(9).integers(0, 64, 500, np.int32)
    calibration.check_text(other)
    leaked = np.concatenate([other[:77], passages[1], other[77:]])
    with pytest.raises(ValueError, match="contains 1 windows of 64 tokens"):
        calibration.check_text(leaked)
    assert len(text_windows(passages)) == 3


def test_a_recipe_that_needs_nothing_is_refused(model_and_params, passages):
    model, params = model_and_params
    with pytest.raises(ValueError, match="needs no calibration"):
        fit(model, params, passages, Recipe.named("int8"))
    with pytest.raises(ValueError, match="shorter than block_size=32"):
        fit(model, params, passages[:, :16], RECIPE)

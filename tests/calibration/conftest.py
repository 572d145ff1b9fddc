"""A tiny decoder whose attention is far from uniform, text for it, and one calibration of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.calibration.artifact import Calibration, ExactTokens
from kakeya_jax.calibration.fit import fit
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.rope import Rope

_WINDOWS = (ExactTokens(sinks=2, recent=9, page=16), ExactTokens(sinks=4, recent=1, page=32))


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rope=Rope(head_dim=16),
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def model(config: ModelConfig) -> Decoder:
    return Decoder(config)


@pytest.fixture(scope="session")
def params(model: Decoder) -> Any:
    fresh = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    flat, tree = jax.tree.flatten_with_path(fresh)
    scaled = [_scale(jax.tree_util.keystr(path), leaf, index) for index, (path, leaf) in enumerate(flat)]
    return jax.tree.unflatten(tree, scaled)


def _scale(path: str, leaf: jax.Array, index: int) -> jax.Array:
    if leaf.ndim != 2:
        return leaf
    normal = jax.random.normal(jax.random.key(index), leaf.shape)
    return normal * (0.3 if "embed" in path else leaf.shape[0] ** -0.5)


@pytest.fixture(scope="session")
def passages() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, (4, 100), np.int32)


@pytest.fixture(scope="session")
def calibration(model: Decoder, params: Any, passages: np.ndarray) -> Calibration:
    return fit(model, params, passages, exact=_WINDOWS, samples=2, about={"text": "random"})

"""A tiny decoder with random weights, scaled so that attention is far from uniform, in memory and in a folder."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from kakeya_jax.eval.cli import run
from kakeya_jax.models import checkpoint
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.rope import Rope


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope=Rope(head_dim=32),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    model = Decoder(tiny_config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    flat, tree = jax.tree.flatten_with_path(params)
    scaled = [_scale(jax.tree_util.keystr(path), leaf, index) for index, (path, leaf) in enumerate(flat)]
    return model, jax.tree.unflatten(tree, scaled)


def _scale(path: str, leaf: jax.Array, index: int) -> jax.Array:
    if leaf.ndim != 2:
        return leaf
    normal = jax.random.normal(jax.random.key(index), leaf.shape)
    return normal * (0.05 if "embed" in path else leaf.shape[0] ** -0.5)


@pytest.fixture(scope="session")
def tiny_tokens(tiny_config) -> np.ndarray:
    return np.random.default_rng(0).integers(0, tiny_config.vocab_size, 1600).astype(np.int32)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model, params = tiny_model
    checkpoint.save(folder, model.config, params)
    words = {f"w{i}": i for i in range(model.config.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text(" ".join(f"w{i * i % 97}" for i in range(5000)))
    return folder


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory, tiny_tokens: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, tiny_tokens)
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def check(*arguments: object) -> str:
        assert run([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("kakeya: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return check


@pytest.fixture
def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what commands set for their process."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # commands set them; this restores them

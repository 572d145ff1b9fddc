"""The bundled model is complete, as small as promised, and as good as its page says."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import kakeya_jax.models
from kakeya_jax.models.bits_per_byte import text_nll
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

FOLDER = Path(kakeya_jax.models.__file__).parent / "demo"


@pytest.fixture(scope="module")
def text() -> str:
    return (FOLDER / "text.txt").read_text(encoding="utf-8")


def test_weights_and_tokenizer_take_at_most_twelve_megabytes() -> None:
    assert sum((FOLDER / name).stat().st_size for name in ("model.safetensors", "tokenizer.json")) <= 12_000_000


def test_it_is_a_grouped_query_decoder_with_heads_of_64() -> None:
    model, params = load("demo", dtype="bfloat16")
    assert model.config.head_dim == 64
    assert model.config.num_heads == 2 * model.config.num_kv_heads
    assert params["embed_tokens"]["embedding"].dtype == jnp.bfloat16


def test_the_text_survives_the_tokenizer_and_fits_the_vocabulary(text: str) -> None:
    tokenizer = load_tokenizer("demo")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    model, _ = load("demo")
    assert ids.max() < model.config.vocab_size == tokenizer.vocab_size


def test_it_predicts_the_bundled_text(text: str) -> None:
    model, params = load("demo")
    start = text[:12_000]
    ids = load_tokenizer("demo").encode(start)
    bits = text_nll(model, params, ids, context=1024, batch_size=1) / math.log(2) / len(start.encode())
    assert 1.0 < bits < 1.45
    shuffled = np.random.default_rng(0).permutation(ids)
    worse = text_nll(model, params, shuffled, context=1024, batch_size=1) / math.log(2) / len(start.encode())
    assert worse > 2.0 * bits, "it reads the order of the words"


def test_the_log_is_that_of_a_whole_run() -> None:
    rows = [json.loads(line) for line in (FOLDER / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == rows[-1]["total_steps"]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["held_out_loss"] < rows[0]["loss"] / 2

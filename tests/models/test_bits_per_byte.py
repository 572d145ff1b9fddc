import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.models import checkpoint
from kakeya_jax.models.bits_per_byte import SEPARATOR_ID, main, text_nll
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.models.train_tokenizer import save_tokenizer, train_bpe
from kakeya_jax.rope import Rope

CONFIG = ModelConfig(
    model_type="llama", vocab_size=260, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8, rope=Rope(head_dim=8), max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
MODEL = Decoder(CONFIG)


@pytest.fixture(scope="module")
def params() -> Any:
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: leaf * 10.0, params)  # initial parameters predict almost nothing


@jax.jit
def logits_of(params: Any, ids: Any) -> Any:
    output: Any = MODEL.apply({"params": params}, ids[None])
    return output.logits[0]


@pytest.mark.parametrize("count", [1, 3, 8, 9, 12, 13, 40, 41])
def test_every_token_is_scored_once(count: int, params: Any) -> None:
    uniform = jax.tree.map(jnp.zeros_like, params)
    nll = text_nll(MODEL, uniform, np.arange(count) + 1, context=8, batch_size=2)
    assert nll == pytest.approx(count * math.log(CONFIG.vocab_size), rel=1e-6)


def test_a_text_within_one_window_is_scored_in_one_pass(params: Any) -> None:
    ids = np.random.default_rng(0).integers(1, 260, 32)
    logits = logits_of(params, np.concatenate([[SEPARATOR_ID], ids[:-1]]))
    expected = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[:, None], axis=1).sum()
    assert abs(expected - 32 * math.log(260)) > 1.0, "the model must not be a uniform one"
    assert text_nll(MODEL, params, ids, context=32) == pytest.approx(expected, rel=1e-5)


def test_later_tokens_see_half_a_window_before_them(params: Any) -> None:
    ids = np.random.default_rng(1).integers(1, 260, 12)
    with_separator = np.concatenate([[SEPARATOR_ID], ids])
    windows = [(0, range(8)), (4, range(4, 8))]  # start, and which of its predictions count
    expected = 0.0
    for start, counted in windows:
        window = with_separator[start : start + 9]
        logits = logits_of(params, window[:-1])
        logs = np.asarray(jax.nn.log_softmax(logits))
        expected -= sum(logs[place, window[place + 1]] for place in counted)
    assert text_nll(MODEL, params, ids, context=8) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "context"), [(0, 8), (4, 7)])
def test_what_cannot_be_scored_is_refused(count: int, context: int, params: Any) -> None:
    with pytest.raises(ValueError, match="at least one token, and an even context"):
        text_nll(MODEL, params, np.ones(count, np.int32), context=context)


def test_the_command_prints_a_row_for_each_text(
    params: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "model", CONFIG, jax.tree.map(jnp.zeros_like, params))
    save_tokenizer(train_bpe(["ab ab"], 260), tmp_path / "model" / "tokenizer.json")
    (tmp_path / "one.txt").write_text("ab \u00e9")
    (tmp_path / "two.txt").write_text("a")
    main([str(tmp_path / "model"), "--context", "8", "--text", str(tmp_path / "one.txt"), str(tmp_path / "two.txt")])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["one.txt", "two.txt"]
    assert rows[0]["bytes"] == 5
    for row in rows:
        assert row["perplexity"] == pytest.approx(260, rel=1e-4)
        assert row["bits_per_byte"] == pytest.approx(math.log2(260) * row["tokens"] / row["bytes"], rel=1e-4)

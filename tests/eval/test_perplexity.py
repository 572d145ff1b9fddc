"""The harness measures what attention reads from the compressed cache, and nothing else."""

import dataclasses
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.codecs import registry
from kakeya_jax.codecs.identity import Identity, IdentityCode, IdentityConfig
from kakeya_jax.eval.gates import parse_gates
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.typing import Array

WINDOW = "sinks=2,recent=8"
IDENTITY = f"both=identity(block_size=16),{WINDOW}"
INT8 = f"both=int8(block_size=16),{WINDOW}"
INT4 = f"both=int4(block_size=16),{WINDOW}"
BROKEN = f"both=broken(block_size=16),{WINDOW}"
SHORT: dict[str, Any] = {"context": 128, "passages": 2, "warmup": 32, "chunk": 32}


def measure(model_and_params: tuple[Any, Any], tokens: np.ndarray, recipes: list[str], **settings: Any) -> EvalResult:
    return evaluate(*model_and_params, tokens, recipes, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokenConfig(IdentityConfig):
    name: ClassVar[str] = "broken"

    def build(self, head_dim, *, layer=0, stream="key", tables=None):
        return Broken(config=self)


@pytree_dataclass
class Broken(Identity):
    """Gives back the block with its sign flipped."""

    def decode(self, code: IdentityCode) -> Array:
        return -code.values.astype(jnp.float32)


@pytest.fixture
def broken_codec(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry._CONFIGS, "broken", BrokenConfig)


@pytest.mark.parametrize("protocol", ["stream", "snapshot"])
def test_what_is_scored_is_read_from_the_codes(broken_codec, tiny_model, tiny_tokens, protocol: str):
    sizes = SHORT if protocol == "stream" else {**SHORT, "warmup": None}
    result = measure(tiny_model, tiny_tokens, [IDENTITY, INT8, BROKEN], protocol=protocol, **sizes)
    identity, int8, broken = result.rows
    assert identity.kl_mean < 1e-6
    assert identity.top1_agreement > 0.99
    assert identity.verdict == "ACCEPT"
    assert 3 * identity.kl_mean < int8.kl_mean < 1e-3
    assert broken.kl_mean > 1e4 * identity.kl_mean
    assert broken.kl_mean > 100 * int8.kl_mean
    assert broken.verdict == "REJECT"


def test_a_context_beyond_the_models_own_is_told(tiny_model, tiny_tokens):
    model, params = tiny_model
    short = Decoder(dataclasses.replace(model.config, max_position_embeddings=100))
    result = measure((short, params), tiny_tokens, [INT8], **SHORT)
    assert any(text.startswith("context 128 is longer than the 100 tokens") for text in result.warnings)


def test_nothing_coded_gives_the_dense_model(tiny_model, tiny_tokens):
    result = measure(tiny_model, tiny_tokens, ["int4,recent=128"], **SHORT)
    assert result.rows[0].kl_mean < 1e-10
    assert result.rows[0].verdict == "NOTHING CODED"
    assert "codes nothing at this context" in result.warnings[0]


def test_one_shot_chunked_and_token_by_token_agree(tiny_model, tiny_tokens):
    rows = [
        measure(tiny_model, tiny_tokens, [INT4], **(SHORT | {"chunk": chunk})).rows[0]
        for chunk in (128, 40, 1)  # one shot; chunks that do not divide the passage; one token at a time
    ]
    assert rows[0].kl_mean > 1e-4
    for row in rows[1:]:
        np.testing.assert_allclose(row.passage_kl, rows[0].passage_kl, rtol=1e-3)
        np.testing.assert_allclose(row.passage_delta_nll, rows[0].passage_delta_nll, atol=1e-5)


def test_numbers_of_a_row_are_those_of_its_passages(tiny_model, tiny_tokens):
    settings = SHORT | {"passages": 3}
    result = measure(tiny_model, tiny_tokens, [INT4], gates=parse_gates("accept=50/10"), **settings)
    row = result.rows[0]
    assert result.tokens_scored == 3 * (128 - 1 - 32)
    assert row.delta_ppl_percent == pytest.approx(100 * np.expm1(np.mean(row.passage_delta_nll)))
    assert row.delta_ppl_percent == pytest.approx(100 * (row.ppl / result.reference_ppl - 1), abs=1e-3)
    assert row.delta_ppl_ci95 is not None
    assert row.delta_ppl_ci95[0] <= row.delta_ppl_percent <= row.delta_ppl_ci95[1]
    assert row.kl_mean == pytest.approx(np.mean(row.passage_kl))
    assert row.kl_p99 > row.kl_mean
    assert row.verdict == "ACCEPT"
    assert (row.payload_bits, row.all_in_bits) == (4.0, 4.5)
    assert (row.sinks, row.recent_min, row.recent_max) == (2, 8, 23)
    assert row.compile_seconds > 0
    assert row.run_seconds > 0
    assert row.encode_seconds is not None
    assert row.encode_seconds > 0
    untimed = measure(tiny_model, tiny_tokens, [INT4], encode_time=False, **settings).rows[0]
    assert untimed.encode_seconds is None
    assert untimed.kl_mean == row.kl_mean


def test_reference_is_the_dense_model(tiny_model, tiny_tokens):
    model, params = tiny_model
    result = measure(tiny_model, tiny_tokens[:128], [IDENTITY], **(SHORT | {"passages": 1}))
    logits = model.apply({"params": params}, tiny_tokens[None, :128]).logits[0]
    nll = -jax.nn.log_softmax(logits)[jnp.arange(32, 127), tiny_tokens[33:128]]
    assert result.reference_ppl == pytest.approx(float(jnp.exp(nll.mean())), rel=1e-5)


def test_snapshot_scores_the_continuation_after_a_clean_prefill(tiny_model, tiny_tokens):
    """Coded once: with the same codes in reach, errors that propagate through a stream make it worse."""
    stream, snapshot = (
        measure(
            tiny_model,
            tiny_tokens,
            [INT4],
            protocol=name,
            context=128,
            passages=4,
            **size,
        )
        for name, size in (("stream", {"warmup": 104}), ("snapshot", {"continuation": 24}))
    )
    assert (stream.continuation, snapshot.continuation) == (None, 24)
    assert stream.tokens_scored == snapshot.tokens_scored == 4 * 23
    assert stream.reference_ppl == pytest.approx(snapshot.reference_ppl, rel=1e-6)
    assert 1e-5 < snapshot.rows[0].kl_mean < stream.rows[0].kl_mean


def test_rows_of_different_windows_are_warned_about(tiny_model, tiny_tokens):
    recipes = [INT8, "both=int8(block_size=16),sinks=0,recent=1"]
    result = measure(tiny_model, tiny_tokens, recipes, **SHORT)
    assert "0 sinks + 1-16 recent, 2 sinks + 8-23 recent" in result.warnings[0]
    assert result.rows[1].kl_mean > result.rows[0].kl_mean
    alike = measure(tiny_model, tiny_tokens, [INT8], **SHORT)
    assert alike.warnings == ()


def test_default_scores_what_the_text_holds_and_says_so(tiny_model, tiny_tokens):
    result = measure(tiny_model, tiny_tokens[:300], [INT8], context=128)
    assert (result.passages, result.warmup, result.tokens_scored) == (2, 32, 190)
    assert "only 190 tokens scored" in result.warnings[0]


def test_progress_counts_up_to_the_end(tiny_model, tiny_tokens):
    seen = []
    measure(tiny_model, tiny_tokens, [INT8], progress=lambda *step: seen.append(step), **SHORT)
    done, totals, texts = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {5}
    assert done[-1] == 5
    assert any(INT8 in text for text in texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 4096}, "text has 1600 tokens, fewer than context=4096"),
        ({"context": 128, "passages": 13}, "passages=13 must be between 1 and 12"),
        ({"protocol": "replay"}, "protocol='replay' must be one of stream, snapshot"),
        ({"context": 128, "warmup": 127}, "leaves nothing to score"),
        ({"context": 128, "protocol": "snapshot", "continuation": 128}, "continuation=128 must be between"),
        ({"context": -4096}, "context=-4096 must be at least 2"),
        ({"context": 128, "continuation": 50}, "continuation=50 belongs to the snapshot protocol, not to stream"),
        ({"context": 128, "protocol": "snapshot", "warmup": 8}, "warmup=8 belongs to the stream protocol"),
        ({"context": 128, "chunk": 0}, "chunk=0 must be between 1 and"),
        ({"context": 128, "recipes": []}, "no recipes"),
        ({"context": 128, "recipes": ["int5"]}, "unknown recipe or codec 'int5'"),
        ({"context": 128, "recipes": ["int4(group_size=48)"]}, "group_size=48 must divide head_dim=32"),
        ({"context": 128, "recipes": ["key[7]=int8"]}, "recipe names layer 7"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(tiny_model, tiny_tokens, settings: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        measure(tiny_model, tiny_tokens, **({"recipes": [INT8]} | settings))


def test_tokens_of_another_vocabulary_are_refused(tiny_model, tiny_tokens):
    with pytest.raises(ValueError, match="vocabulary has 101"):
        measure(tiny_model, tiny_tokens + 1, [INT8], context=128)

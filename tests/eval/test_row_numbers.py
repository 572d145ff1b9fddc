"""The numbers of a row from losses and divergences made up here, against what they come to by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kakeya_jax.eval import perplexity
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.eval.score import TokenScores

RECIPE = "both=int8(block_size=16),sinks=2,recent=8"
SCORED = 95  # of a passage of 128 tokens: 32 warm up, the last has no target


@pytest.fixture
def measure_made_up(monkeypatch: pytest.MonkeyPatch, tiny_model) -> Callable[..., EvalResult]:
    """``evaluate`` on ``num_tokens`` tokens, with ``scores(passages, scored)`` in place of running the model."""

    def measure(num_tokens: int, scores: Callable[[int, int], TokenScores], **settings: Any) -> EvalResult:
        def run_all(model, params, texts, candidates, run, progress) -> list[TokenScores]:
            return [scores(len(texts), run.scored)] * len(candidates)

        monkeypatch.setattr(perplexity, "_run_all", run_all)
        model, params = tiny_model
        return perplexity.evaluate(model, params, np.zeros(num_tokens, np.int32), [RECIPE], **settings)

    return measure


def equal_scores(*shape: int) -> TokenScores:
    nothing: Any = np.zeros(shape)
    return TokenScores(reference_nll=nothing, candidate_nll=nothing, kl=nothing, agree=nothing == 0)


def known_scores(*shape: int) -> TokenScores:
    """The candidate loses 0.01 nats in the first passage, 0.03 in the second; the divergences are 189, 188, ..., 0."""
    assert shape == (2, SCORED)
    reference: Any = np.full(shape, math.log(20.0))
    token: Any = np.arange(2 * SCORED).reshape(shape)
    return TokenScores(
        reference_nll=reference,
        candidate_nll=reference + np.array([[0.01], [0.03]]),
        kl=2.0 * SCORED - 1 - token,
        agree=token % 10 > 0,
    )


@pytest.mark.parametrize("num_tokens", [69_591, 133_327])
def test_a_usual_text_gives_at_least_20000_scored_tokens(measure_made_up, num_tokens: int) -> None:
    """As many tokens as the validation split of WikiText-2 and half a novel have, everything else left as it is."""
    result = measure_made_up(num_tokens, equal_scores, encode_time=False)
    assert (result.context, result.warmup) == (4096, 512)
    assert result.passages == 6  # of 4096 - 512 - 1 scored tokens; five would be 17,915
    assert result.tokens_scored == 6 * 3583 >= 20_000
    assert not any("tokens scored" in warning for warning in result.warnings)


def test_numbers_of_a_row_by_hand(measure_made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(perplexity, "encode_seconds", lambda cache: timed.append(cache) or 7.25)
    settings = {"context": 128, "passages": 2, "warmup": 32}
    result = measure_made_up(300, known_scores, **settings)
    row = result.rows[0]
    assert result.reference_ppl == pytest.approx(20.0)
    assert row.ppl == pytest.approx(20.0 * math.exp(0.02))
    assert row.delta_ppl_percent == pytest.approx(100 * (math.exp(0.02) - 1))
    assert row.passage_delta_nll == pytest.approx((0.01, 0.03))
    assert row.kl_mean == pytest.approx(94.5)
    assert row.passage_kl == pytest.approx((142.0, 47.0))
    # Of the divergences 0, 1, ..., 189 the share 0.99 lies 0.99 x 189 = 187.11 steps above the least.
    assert row.kl_p99 == pytest.approx(187.11)
    assert row.top1_agreement == pytest.approx(0.9)
    assert row.encode_seconds == 7.25
    assert [cache.max_length for cache in timed] == [128]
    assert measure_made_up(300, known_scores, encode_time=False, **settings).rows[0].encode_seconds is None
    assert len(timed) == 1

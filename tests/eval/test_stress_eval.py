"""Outlier channels that change nothing but the cache: what recipes make of them, on the command line and in numbers."""

import json

import numpy as np
import pytest

from kakeya_jax.calibration.fit import fit
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models import checkpoint
from kakeya_jax.models.stress import stress
from kakeya_jax.models.tokenizer import load_tokenizer


def test_command_line_says_what_was_measured(tmp_path, tiny_model, tiny_tokens, capsys):
    folder = tmp_path / "house"
    checkpoint.save(folder, tiny_model[0].config, tiny_model[1])
    np.save(folder / "tokens.npy", tiny_tokens)
    arguments = ["eval", folder, "--tokens", folder / "tokens.npy", "--context", 256, "--passages", 1, "--quiet"]
    arguments += ["--recipe", "turboquant-3,recent=1,sinks=0", "--json", "-"]
    documents = []
    for extra in ([], ["--stress", 32]):
        assert run([str(argument) for argument in (*arguments, *extra)]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    plain, stressed = documents
    assert (plain["model"], stressed["model"]) == ("house", "house+stress32")
    assert stressed["reference_ppl"] == plain["reference_ppl"]
    assert stressed["rows"][0]["kl_mean"] > 5 * plain["rows"][0]["kl_mean"]
    assert run([str(argument) for argument in (*arguments, "--stress", 0)]) == 2
    assert "stress factor 0.0 must be a positive number, for example 32" in capsys.readouterr().err


@pytest.mark.slow
def test_klt_does_not_notice_and_turboquant_breaks(tiny_model, tiny_tokens):
    model, params = tiny_model
    plain, stressed = (_losses(model, stress(params, model.config, factor), tiny_tokens) for factor in (1.0, 128.0))
    # Measured: klt-2 1.24e-3 and klt-quality-2 1.10e-3 both times, to every digit; turboquant-3 1.1e-3, then 0.111.
    assert stressed["klt-2"] == pytest.approx(plain["klt-2"], rel=1e-3)
    assert stressed["klt-quality-2"] == pytest.approx(plain["klt-quality-2"], rel=1e-3)
    assert stressed["turboquant-3"] > 50 * plain["turboquant-3"]


@pytest.mark.slow
def test_nor_does_it_on_the_bundled_model():
    model, params = checkpoint.load("demo")
    tokens = encode_text(bundled_text(), load_tokenizer("demo"))[-2048:]
    plain, stressed = (_losses(model, stress(params, model.config, factor), tokens) for factor in (1.0, 128.0))
    # Measured: klt-2 6.6205e-4 and 6.6205e-4, turboquant-3 9.8e-4 and 6.66.
    assert stressed["klt-2"] == pytest.approx(plain["klt-2"], rel=1e-3)
    assert plain["turboquant-3"] < 0.01
    assert stressed["turboquant-3"] > 1.0


def _losses(model, params, tokens) -> dict[str, float]:
    """KL by recipe, on the last 512 tokens, calibrated on those before."""
    train = tokens[:-512][: (len(tokens) - 512) // 512 * 512].reshape(-1, 512)
    calibration = fit(model, params, train)
    recipes = ("klt-2", "klt-quality-2", "turboquant-3")
    result = evaluate(model, params, tokens[-512:], recipes, context=512, calibration=calibration, passages=1)
    return {row.recipe: row.kl_mean for row in result.rows}

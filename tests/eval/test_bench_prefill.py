"""Encoding a prompt beside running it."""

import json
import pathlib

import jax.numpy as jnp
import pytest

from kakeya_jax.eval.bench_prefill import bench_prefill
from kakeya_jax.eval.cli import run
from kakeya_jax.models.locate import DEMO, find_folder


def test_rows(tiny_model):
    seen = []
    model, params = tiny_model
    recipes = ["both=int4(group_size=16,block_size=16)", "both=klt(block_size=16)"]
    rows = bench_prefill(model, params, recipes, context=160, repeats=2, dtype=jnp.float32, on_row=seen.append)
    assert seen == rows
    assert [row.recipe for row in rows] == recipes
    for row in rows:
        assert row.share == pytest.approx(row.encode_milliseconds / row.prefill_milliseconds, rel=0.9)


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    raw = json.loads((find_folder(DEMO) / "config.json").read_text())
    config = tmp_path / "small.json"
    config.write_text(json.dumps({**raw, "num_hidden_layers": 1, "vocab_size": 128}))
    words = ["bench", "prefill", "--config-json", str(config), "--context", "256", "--repeats", "1", "--quiet"]
    assert run([*words, "--recipe", "turboquant-2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "random weights, small.json"
    assert [row["recipe"] for row in found["rows"]] == ["turboquant-2"]
    assert run([*words, "--recipe", "turboquant-2"]) == 0
    assert "share %" in capsys.readouterr().out
    assert run([*words, "--model", "elsewhere"]) == 2
    assert "leave out --model" in capsys.readouterr().err

"""``kakeya ablate``: what is measured, kept, resumed, compared and written, with an ablation of its own."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest

from kakeya_jax.calibration.artifact import ExactTokens
from kakeya_jax.calibration.fit import fit
from kakeya_jax.eval.ablations import registry
from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, compare, recipe_cells
from kakeya_jax.eval.ablations.results import SCHEMA, load_ablation_result
from kakeya_jax.eval.ablations.run import Request, parse_part, run_request
from kakeya_jax.eval.ablations.table import markdown_table
from kakeya_jax.eval.cli import run

RECIPES = {
    "four": "both=int4(block_size=16),recent=1",
    "eight": "both=int8(block_size=16),recent=1",
    "keys": "key=int4(block_size=16),value=identity(block_size=16),recent=1",
}
PLAIN = Ablation(
    name="plain",
    question="Is it?",
    claims=("someone: it is",),
    cells=lambda config, context: recipe_cells(RECIPES),
    columns=COLUMNS,
    baseline="four",
    findings=lambda rows: [f"{len(rows)} rows."],
)
FITTED = dataclasses.replace(
    PLAIN,
    name="fitted",
    baseline=None,
    cells=lambda config, context: recipe_cells(
        {"own": "value=kakeya(bits=2,block_size=16,rank=8,kmeans_centers=0,basis=shared),key=identity(block_size=16)"}
    ),
)
MORE = {"context": 64, "passages": 3}


@pytest.fixture(autouse=True)
def ablations(monkeypatch: pytest.MonkeyPatch, keep_environment: None) -> None:
    monkeypatch.setattr(registry, "ABLATIONS", {"plain": PLAIN, "fitted": FITTED})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the cells that are really measured from here on."""
    labels: list[str] = []
    original = RecipeCell.measure

    def measure(cell: RecipeCell, setup):
        labels.append(cell.label)
        return original(cell, setup)

    monkeypatch.setattr(RecipeCell, "measure", measure)
    return labels


def request(model_folder: pathlib.Path, token_file: pathlib.Path, out: pathlib.Path | None, **options) -> Request:
    return Request(name="plain", model=str(model_folder), tokens=token_file, json_path=out, **{**MORE, **options})


def test_results_are_written_and_resumed(
    model_folder: pathlib.Path, token_file: pathlib.Path, tmp_path: pathlib.Path, measured: list[str]
):
    out, table = tmp_path / "plain.json", tmp_path / "plain.md"
    arguments = ["ablate", "plain", model_folder, "--tokens", token_file, "--context", 64, "--passages", 3]
    arguments += ["--json", out, "--markdown", table, "--quiet"]
    assert run(list(map(str, arguments))) == 0
    assert measured == list(RECIPES)
    document = json.loads(out.read_text())
    jsonschema.validate(document, SCHEMA)
    rows = {row["label"]: row for row in document["rows"]}
    assert rows["eight"]["kl_mean"] < rows["keys"]["kl_mean"] < rows["four"]["kl_mean"]
    assert rows["keys"]["coded_bits"] == rows["four"]["coded_bits"] == pytest.approx(4.5)
    assert rows["keys"]["bits_per_value"]["all_in"] == pytest.approx((4.5 + 16) / 2)
    assert "paired" not in rows["four"]
    assert rows["eight"]["paired"]["kl_ratio"] < 0.1
    assert rows["eight"]["paired"]["kl_ratio_ci95"][1] < 0.2
    assert document["tokens_scored"] == 3 * (64 - 16 - 1)
    assert document["findings"] == ["3 rows."]
    command = f"kakeya ablate plain {model_folder.name} --tokens tokens.npy --context 64 --passages 3 --json plain.json"
    assert document["command"] == command
    assert load_ablation_result(out).to_dict() == document
    assert table.read_text() == markdown_table(load_ablation_result(out))
    assert "| four | 4.500 |" in table.read_text()
    # All cells are kept: nothing is measured again, unless what it depends on changes.
    cells = tmp_path / "plain.json.cells.jsonl"
    again = run_request(request(model_folder, token_file, out), quiet=True)
    assert again is not None
    assert list(again.rows) == document["rows"]
    assert measured == list(RECIPES)
    cells.write_bytes(cells.read_bytes()[:-7])
    assert run_request(request(model_folder, token_file, out), quiet=True) is not None
    assert measured == [*RECIPES, "keys"]
    run_request(request(model_folder, token_file, out, passages=2), quiet=True)
    assert measured == [*RECIPES, "keys", *RECIPES]


def test_parts_are_put_together(
    model_folder: pathlib.Path, token_file: pathlib.Path, tmp_path: pathlib.Path, measured: list[str]
):
    out = tmp_path / "plain.json"
    assert run_request(request(model_folder, token_file, out, part=(1, 2)), quiet=True) is None
    assert measured == ["four", "keys"]
    assert not out.exists()
    whole = run_request(request(model_folder, token_file, out), quiet=True)
    assert measured == ["four", "keys", "eight"]
    assert whole is not None
    assert [row["label"] for row in whole.rows] == list(RECIPES)


def test_tables_are_fitted_to_training_text_only(
    model_folder: pathlib.Path, token_file: pathlib.Path, tiny_model, tmp_path: pathlib.Path
):
    model, params = tiny_model
    train = np.random.default_rng(7).integers(0, model.config.vocab_size, 256).astype(np.int32)
    path, calibration = tmp_path / "train.npy", tmp_path / "calibration.safetensors"
    np.save(path, train)
    asked = dataclasses.replace(request(model_folder, token_file, None), name="fitted")
    with pytest.raises(ValueError, match="ablation fitted needs a calibration; make one with `kakeya calibrate"):
        run_request(asked, quiet=True)
    fit(model, params, train[None, :64], exact=(ExactTokens(sinks=4, recent=1, page=16),), samples=1, joint=False).save(
        calibration
    )
    asked = dataclasses.replace(asked, calibration=calibration)
    with pytest.raises(ValueError, match=r"give training text to fit them to as --train TRAIN\.npy"):
        run_request(asked, quiet=True)
    result = run_request(dataclasses.replace(asked, train=path), quiet=True)
    assert result is not None
    assert result.calibration is not None
    assert result.calibration["fitted_tokens"] == 256
    assert result.rows[0]["table_bytes"] > 0
    with pytest.raises(ValueError, match="the evaluation text contains"):
        run_request(dataclasses.replace(asked, train=token_file), quiet=True)


def test_comparisons_are_paired():
    def row(kl: list[float | None], delta: list[float | None]):
        return {"per_passage": {"kl": kl, "delta_nll": delta}}

    base, double = row([0.1, 0.3, 1.0], [0.0, 0.1, 0.2]), row([0.2, 0.6, 2.0], [0.01, 0.11, 0.21])
    paired = compare(double, base)
    assert paired["kl_ratio"] == pytest.approx(2.0)
    assert paired["kl_ratio_ci95"] == pytest.approx((2.0, 2.0))
    assert paired["delta_ppl_percent"] == pytest.approx(100 * np.expm1(0.01))
    broken = compare(row([0.2, None, 2.0], [0.0, None, 0.0]), base)
    assert (broken["kl_ratio"], broken["kl_ratio_ci95"], broken["delta_ppl_ci95"]) == (None, None, None)


def test_wrong_input(fails: Callable[..., str], model_folder: pathlib.Path, token_file: pathlib.Path, tmp_path):
    assert "unknown ablation 'other'; ablations: plain, fitted" in fails("ablate", "other")
    assert "nothing to measure on; give --text FILE or --tokens FILE" in fails("ablate", "plain", model_folder)
    assert "--part '3/2' must be K/N" in fails("ablate", "plain", "--part", "3/2")
    assert "give --json FILE too" in fails("ablate", "plain", "--part", "1/2")
    assert "--json" in fails("ablate", "plain", model_folder, "--tokens", token_file, "--json", tmp_path)
    text = tmp_path / "text.txt"
    assert "not both" in fails("ablate", "plain", "--tokens", token_file, "--text", text)
    assert parse_part(None) is None
    assert parse_part("2/3") == (2, 3)
    bad = tmp_path / "bad.json"
    bad.write_text('{"schema_version": 0}')
    with pytest.raises(ValueError, match="not an ablation's results file"):
        load_ablation_result(bad)


def test_list(capsys: pytest.CaptureFixture[str]):
    assert run(["ablate", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "plain" in shown
    assert "Is it?" in shown

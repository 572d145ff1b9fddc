"""The one command that measures every ablation: all of its cells, put together; and the page that is made of it."""

import json
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from script_modules import load_script

import kakeya_jax.models
from kakeya_jax.eval.ablations.registry import ABLATIONS
from kakeya_jax.eval.ablations.results import SCHEMA

ROOT = Path(__file__).parents[2]
MODEL = Path(kakeya_jax.models.__file__).parent / "demo"
COMMITTED = sorted((ROOT / "docs" / "results" / "ablations").glob("*.json"))

pytestmark = pytest.mark.skipif(not (ROOT / "scripts" / "make_ablations.py").is_file(), reason="needs a checkout")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("measure_ablations")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for name in ("tokens", "train"):
        (tmp_path / f"{name}.npy").touch()
    options = ["--tokens", tmp_path / "tokens.npy", "--train", tmp_path / "train.npy", "--processes", 4]
    return list(map(str, [MODEL, tmp_path / "out", *options]))


def test_the_page_is_made_of_the_files():
    page = load_script("make_ablations")
    assert page.build() == page.PAGE.read_text(), "run scripts/make_ablations.py"
    assert all(f"## {name}" in page.PAGE.read_text() for name in ABLATIONS)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_of_these_ablations(path: Path):
    for result in json.loads(path.read_text())["ablations"]:
        jsonschema.validate(result, SCHEMA)
        ablation = ABLATIONS[result["ablation"]]
        assert result["model"] == path.stem
        assert (result["question"], tuple(result["claims"])) == (ablation.question, ablation.claims)
        rows = {row["label"]: row for row in result["rows"]}
        assert len(rows) == len(result["rows"])
        assert list(ablation.findings(rows)) == result["findings"]
        for row in result["rows"]:
            assert all(column.text(row) for column in ablation.columns if "baseline" not in column.title)


def test_a_dry_run_names_every_cell_once(script: ModuleType, arguments: list[str], capsys: Any):
    assert script.main([*arguments, "--dry-run"]) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[0][:2] == ["kakeya", "calibrate"]
    whole = [words[2] for words in printed if words[1] == "ablate" and "--part" not in words]
    assert sorted(whole) == sorted(ABLATIONS)
    assert whole[-2:] == list(script.TIMED)
    for name in ABLATIONS:
        parts = [words[-1] for words in printed if words[1:3] == ["ablate", name] and "--part" in words]
        assert parts == [f"{part}/{len(parts)}" for part in range(1, len(parts) + 1)]
        size = 1 if name in script.SLOW else script.CELLS_OF_A_PART
        assert bool(parts) != (name in script.TIMED or script._cells(str(MODEL), name) <= size)
    calibrated = {words[2] for words in printed if words[1] == "ablate" and "--calibration" in words}
    assert calibrated == set(script.CALIBRATED)


def test_those_that_need_calibration_get_it(script: ModuleType):
    from kakeya_jax.models.config import ModelConfig

    config = ModelConfig.from_folder(MODEL)
    needing = {
        name
        for name, ablation in ABLATIONS.items()
        if any(cell.recipe is not None and cell.recipe.needs_calibration for cell in ablation.cells(config, 4096))
    }
    assert needing == set(script.CALIBRATED)


def test_a_failed_command_is_named_and_what_needs_it_is_left(
    script: ModuleType, arguments: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    ran: list[list[str]] = []

    def fails(words: list[str], env: dict[str, str]) -> Any:
        assert env["CUDA_VISIBLE_DEVICES"] in "01"
        ran.append(words)
        return subprocess.CompletedProcess(words, int("depth" in words and words[-2].startswith("1/")))

    monkeypatch.setattr(subprocess, "run", fails)
    assert script.main([*arguments, "--gpus", "2"]) == 1
    whole = {words[words.index("ablate") + 1] for words in ran if "ablate" in words and "--part" not in words}
    assert whole == set(ABLATIONS) - {"depth", *script.TIMED}
    failed = capsys.readouterr().err.splitlines()
    assert len(failed) == 1
    assert failed[0].startswith("failed: kakeya ablate depth")


def test_without_a_calibration_the_others_are_measured(
    script: ModuleType, arguments: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    ran: list[list[str]] = []

    def fails(words: list[str], env: dict[str, str]) -> Any:
        ran.append(words)
        return subprocess.CompletedProcess(words, int("calibrate" in words))

    monkeypatch.setattr(subprocess, "run", fails)
    assert script.main(arguments) == 1
    measured = {words[words.index("ablate") + 1] for words in ran if "ablate" in words}
    assert measured == set(ABLATIONS) - {*script.CALIBRATED, *script.TIMED}
    assert capsys.readouterr().err.startswith("failed: kakeya calibrate")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "out", "--tokens", "x.npy"], "has its own text"),
        (["model", "out"], "give --tokens FILE"),
        (["model", "out", "--tokens", "x.npy", "--train", "y.npy"], "does not exist"),
        (["demo", "out", "--processes", "0"], "must be at least 1"),
        (["demo", "out", "--gpus", "2"], "at most --processes 1"),
        (["demo", "out", "--names", "other"], "invalid choice: 'other'"),
    ],
)
def test_wrong_arguments_are_one_line_each(script: ModuleType, words: list[str], message: str, capsys: Any):
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_results_are_put_together(script: ModuleType, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no results of ablations"):
        script.merge(tmp_path, list(ABLATIONS), tmp_path / "all.json")
    if not COMMITTED:
        pytest.skip("no results yet")
    results = json.loads(COMMITTED[0].read_text())["ablations"]
    for result in results:
        (tmp_path / f"{result['ablation']}.json").write_text(json.dumps(result))
    script.merge(tmp_path, list(ABLATIONS), tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(COMMITTED[0].read_text())

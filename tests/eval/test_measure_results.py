"""The one command that measures the results page anew: every row of it, and nothing lost on the way."""

import itertools
import json
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script

import kakeya_jax.models

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "measure_results.py"
RESULTS = ROOT / "docs" / "results"
MODEL = Path(kakeya_jax.models.__file__).parent / "demo"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs a checkout")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("measure_results")


@pytest.fixture
def arguments(tmp_path: Path, script: ModuleType) -> list[str]:
    for name in (*script.TEXTS, "train"):
        (tmp_path / f"{name}.npy").touch()
    return list(map(str, (MODEL, tmp_path, tmp_path / "train.npy", tmp_path / "out")))


def rows_of(path: Path) -> list[str]:
    return [row["recipe"] for row in json.loads(path.read_text())["rows"]]


def values_of(words: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


def test_a_dry_run_names_every_row_of_the_page_once(script: ModuleType, arguments: list[str], capsys: Any) -> None:
    assert script.main([*arguments, "--dry-run"]) == 0
    assert not Path(arguments[-1]).exists()
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    made = [word for words in printed if words[:2] == ["kakeya", "calibrate"] for word in values_of(words, "--out")]
    found: dict[tuple[str, str], list[str]] = {}
    for words in (words for words in printed if words[:2] == ["kakeya", "eval"]):
        assert set(values_of(words, "--calibration")) <= set(made)
        what = Path(*values_of(words, "--tokens")).stem, "".join(values_of(words, "--stress"))
        found.setdefault(what, []).extend(values_of(words, "--recipe"))
    for path in RESULTS.glob("house-*.json"):
        assert set(rows_of(path)) <= set(found[path.name.split(".")[1], ""]), path.name
    for path in (RESULTS / "stress").glob("house-*.json"):
        assert rows_of(path) == found[script.TEXTS[1], path.name.split(".")[1][1:]], path.name
    assert len(found) == 5
    assert all(len(set(rows)) == len(rows) for rows in found.values())


def test_a_failed_command_is_named_and_nothing_after_it_runs(
    script: ModuleType, arguments: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def fails_for_stress(words: list[str]) -> Any:
        ran.append(words)
        return subprocess.CompletedProcess(words, int("--stress" in words))

    monkeypatch.setattr(subprocess, "run", fails_for_stress)
    assert script.main(arguments) == 1
    assert {words[3] for words in ran} == {"calibrate"}
    failed = capsys.readouterr().err.splitlines()
    assert len(failed) == 3
    assert all(line.startswith("failed: kakeya calibrate") and "--stress" in line for line in failed)


@pytest.mark.parametrize(("position", "value"), [(0, "nowhere"), (1, "nowhere"), (2, "none.npy")])
def test_missing_files_are_one_line_each(
    script: ModuleType, arguments: list[str], capsys: Any, position: int, value: str
) -> None:
    arguments[position] = value
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    assert f"{value}" in capsys.readouterr().err.splitlines()[-1]


def test_rows_of_one_codec_are_measured_alone(script: ModuleType, arguments: list[str], capsys: Any) -> None:
    assert script.main([*arguments, "--dry-run", "--rows", r"^(both=)?turboquant"]) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    recipes = [recipe for words in printed for recipe in values_of(words, "--recipe")]
    assert recipes
    assert all("turboquant" in recipe for recipe in recipes)
    assert len([words for words in printed if words[:2] == ["kakeya", "calibrate"]]) == 4  # nothing fitted to a codec
    for pattern, says in (("no such codec", "found in no recipe"), ("(", "no regular expression")):
        with pytest.raises(SystemExit):
            script.main([*arguments, "--rows", pattern])
        assert says in capsys.readouterr().err


def test_new_rows_take_the_place_of_old_ones(script: ModuleType, tmp_path: Path) -> None:
    """And nothing else in the file changes."""
    name = "house-qwen2-30m.eval_wikitext2_valid.json"
    before = json.loads((RESULTS / name).read_text())
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / name).write_text(json.dumps(before))
    changed = before | {"rows": [row | {"kl_mean": 0.125} for row in before["rows"] if row["recipe"] == "klt-2"]}
    (new / name).write_text(json.dumps(changed))
    assert script.main(["--replace", str(new), str(old)]) == 0
    after = json.loads((old / name).read_text())
    for was, now in zip(before["rows"], after["rows"], strict=True):
        assert now == (was | {"kl_mean": 0.125} if was["recipe"] == "klt-2" else was)
    assert all(after[field] == value for field, value in before.items() if field != "rows")
    changed["rows"][0]["recipe"] = "unknown"
    (new / name).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="unknown has no row to replace"):
        script.main(["--replace", str(new), str(old)])
    assert script.main(["--replace", str(new)]) == script.main(["--replace", str(new), str(tmp_path / "none")]) == 2

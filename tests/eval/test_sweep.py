"""Grids are checked whole; a sweep killed at any moment goes on to the same file."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from kakeya_jax.eval.cells import cell_key
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.grid import GridError, load_grid
from kakeya_jax.eval.results import SCHEMA
from kakeya_jax.eval.run_sweep import hash_files, plan_sweep

pytestmark = pytest.mark.usefixtures("keep_environment")

TIMED = ("run_seconds", "compile_seconds", "encode_seconds")
SMALL = """
models: {model}
texts: [{text}]
recipes:
  - recipe: "both={{codec}}(block_size={{n}}),sinks=2,recent=8"
    codec: [int8, int4]
    n: [16]
options: {{context: 64, passages: 1, warmup: 16}}
"""


def grid_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def problems_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(GridError) as caught:
        plan_sweep(grid_file(tmp_path, text))
    return caught.value.problems


def lines_of(path: Path) -> list[dict]:
    """The lines, without times and dates."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for each in found:
        del each["result"]["environment"]["date"]
        for row in each["result"]["rows"]:
            assert all(name in row for name in TIMED)
            row.update(dict.fromkeys(TIMED))
    return found


def test_cross_product_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOUSE", "/models")
    text = """
    models: [demo, {model: $HOUSE/m, calibration: $HOUSE/k.safetensors, texts: [$HOUSE/a.npy, b.txt]}]
    recipes:
      - int8
      - {recipe: "both=int4(affine={affine}),recent={recent}", affine: [true, false], recent: [1, 128]}
    options:
      - {context: [512, 1024], passages: 2}
      - {protocol: snapshot, context: 1024}
    """
    cells = load_grid(grid_file(tmp_path, text))
    assert len(cells) == (1 + 2) * 3 * 5
    recipes = [cell.written.recipes[0] for cell in cells[:5]]
    assert recipes[:3] == ["int8", "both=int4(affine=true),recent=1", "both=int4(affine=true),recent=128"]
    assert [cell.written.context for cell in cells[:15:5]] == [512, 1024, 1024]
    assert cells[10].command == ("kakeya eval demo --protocol snapshot --context 1024 --no-encode-time --recipe int8")
    house = cells[15]
    assert house.command == (
        'kakeya eval "$HOUSE/m" --tokens "$HOUSE/a.npy" --context 512 --passages 2 --calibration '
        '"$HOUSE/k.safetensors" --no-encode-time --recipe int8'
    )
    assert str(house.request.tokens) == "/models/a.npy"
    assert cells[30].written.text == Path("b.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must be a mapping with models, texts, recipes, options"),
        ("models: demo\nrecipes: int8\nrecipe: int4", "unknown key 'recipe'"),
        ("models: demo", "the grid has no recipes"),
        ("recipes: int8", "the grid has no models"),
        ("models: demo\nrecipes: [int5]", "int5: "),
        (
            "models: demo\nrecipes: [int8, int8]",
            "2 cells are the same: kakeya eval demo --no-encode-time --recipe int8",
        ),
        ("models: demo\nrecipes: ['int8,recent={r}']", "has no list for {r}"),
        ("models: demo\nrecipes: [{recipe: int8, r: [1]}]", "has no place {r} for the list r"),
        ("models: demo\nrecipes: int8\noptions: {contexts: 1}", "unknown option 'contexts'; a grid may set protocol"),
        ("models: demo\nrecipes: int8\noptions: {context: [x]}", "option context: 'x' must be of type int"),
        ("models: demo\nrecipes: int8\noptions: {warmup: 4096}", "warmup=4096 leaves nothing to score"),
        ("models: demo\nrecipes: int8\noptions: {gates: loose}", "gates 'loose'"),
        ("models: demo\nrecipes: int8\ntexts: none.npy", "token file none.npy does not exist"),
        ("models: /no/such\nrecipes: int8\ntexts: none.npy", "there is no folder /no/such"),
        ("models: $NO_SUCH/m\nrecipes: int8\ntexts: a.npy", "the variable NO_SUCH is not set"),
        ("models: demo\nrecipes: int8\noptions: {context: 4096, passages: 1000}", "which hold"),
        ("models: demo\nrecipes: klt-2\noptions: {stress: 8}", "klt-2 on demo: takes calibrated tables"),
        ("models: {model: demo, calibration: none}\nrecipes: klt-2", "none"),
        ("models: demo\nrecipes: ['int4(group_size=48)']", "group_size=48 must divide head_dim=64"),
        (
            f"models: demo\nrecipes: {{recipe: 'int8,recent={{r}}', r: {list(range(1, 1002))}}}",
            "1001 cells are more than 1000",
        ),
        ("models: [", "is not readable YAML"),
    ],
)
def test_mistakes_are_found_before_the_first_cell(tmp_path: Path, text: str, said: str):
    problems = problems_of(tmp_path, text)
    assert any(said in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_every_mistake_has_its_line(tmp_path: Path, capsys):
    grid = grid_file(tmp_path, "models: demo\nrecipes: [int5, int8, kivi-9]\ntexts: [none.npy, none.txt]\n")
    assert run(["sweep", str(grid)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("kakeya: error: ") for line in lines)
    assert not grid.with_suffix(".jsonl").exists()


def test_one_line_for_each_cell_that_its_command_repeats(tmp_path: Path, model_folder, token_file, capsys):
    grid = grid_file(tmp_path, SMALL.format(model=model_folder, text=token_file))
    assert run(["sweep", str(grid), "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert run(["sweep", str(grid)]) == 0
    assert "[2/2]" in (said := capsys.readouterr().err)
    assert "2 cells in" in said
    lines = lines_of(grid.with_suffix(".jsonl"))
    assert [line["result"]["command"] for line in lines] == commands
    for line in lines:
        assert line["key"] == cell_key(line["request"])
        jsonschema.validate(line["result"], SCHEMA)
    assert run([*shlex.split(commands[1])[1:], "--json", "-", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"][0]["per_passage"] == lines[1]["result"]["rows"][0]["per_passage"]
    assert again["text_sha256"] == lines[1]["result"]["text_sha256"]
    grid.write_text(grid.read_text().replace("[int8, int4]", "[int4]"))
    assert run(["sweep", str(grid), "--quiet"]) == 0
    assert "0 cells in 0 s, 1 were finished before" in (said := capsys.readouterr().err)
    assert "1 more in the file are of no cell of this grid" in said
    assert lines_of(grid.with_suffix(".jsonl")) == lines


def test_other_files_are_other_cells(tmp_path: Path, model_folder):
    tokens = tmp_path / "t.npy"
    np.save(tokens, np.arange(400) % 97)
    grid = grid_file(tmp_path, SMALL.format(model=model_folder, text=tokens))
    before = [cell_key(cell.identity) for cell in plan_sweep(grid).cells]
    assert [cell_key(cell.identity) for cell in plan_sweep(grid).cells] == before
    np.save(tokens, np.arange(400) % 89)
    after = [cell_key(cell.identity) for cell in plan_sweep(grid).cells]
    assert not set(before) & set(after)


def test_large_files_are_hashed_at_both_ends(tmp_path: Path):
    path = tmp_path / "weights"
    data = bytearray(3 << 20)
    hashes = set()
    for place in (None, 0, len(data) - 1):
        if place is not None:
            data[place] ^= 1
        path.write_bytes(data)
        hashes.add(hash_files((path,)))
    assert len(hashes) == 3


def test_a_killed_sweep_goes_on_to_the_same_file(tmp_path: Path):
    """On the bundled model: SIGKILL at random moments, then the same command until it ends by itself."""
    grid = grid_file(tmp_path, SMALL.format(model="demo", text="bundled"))
    command = [sys.executable, "-m", "kakeya_jax.eval", "sweep", str(grid), "--quiet", "--out"]
    out, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    seed = time.time_ns()
    moment = random.Random(seed)
    killed = []
    # The file appears when the grid is checked and the first cell begins; later, when a cell is finished.
    for lines, within in ((0, 2.0), (1, 0.3)):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= lines):
            time.sleep(0.01)
        time.sleep(moment.uniform(0, within))
        process.send_signal(signal.SIGKILL)
        killed.append(process.wait() == -signal.SIGKILL)
    assert any(killed), f"seed {seed}"
    for path in (out, whole):
        subprocess.run([*command, str(path)], check=True, capture_output=True)
    assert lines_of(out) == lines_of(whole), f"seed {seed}"
    assert len(lines_of(out)) == 2

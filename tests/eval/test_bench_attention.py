"""``kakeya bench attention`` on a shape that any machine can run."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from kakeya_jax.eval import attention_table, bench_attention
from kakeya_jax.eval.bench_attention import AttentionSpeed, best_dense
from kakeya_jax.eval.bench_logits import bench_logits
from kakeya_jax.eval.cli import run
from kakeya_jax.pallas_kernels.attention.arg_specs import ARG_SPECS

TINY = ("bench", "attention", "--shape", "tiny", "--repeats", "3", "--implementation", "reference")
TWO_RECIPES = ("--recipe", "turboquant-4", "--recipe", "int8")


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a copy moves: less than the cache of a GPU must not hold."""
    monkeypatch.setattr(bench_attention, "ROTATED_NBYTES", 10**6)


def test_json_of_a_measurement(capsys: pytest.CaptureFixture[str]):
    assert run([*TINY, "--recipe", "turboquant-4", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    rows = {row["name"]: row for row in found["shapes"]["tiny"]["rows"]}
    spec = ARG_SPECS["tiny"]
    packed = rows["turboquant-4 reference"]
    # K and V: half a byte for a coordinate and a float16 scale for a vector.
    assert packed["nbytes"] == 2 * spec.batch * spec.num_kv_heads * spec.tokens * (spec.head_dim // 2 + 2)
    assert packed["milliseconds"] > 0
    assert packed["quartiles"][0] <= packed["milliseconds"] <= packed["quartiles"][1]
    assert rows["floor copy"]["nbytes"] == spec.dense_nbytes
    assert found["environment"]["devices"]
    assert "tiny turboquant-4 reference" in printed.err


@pytest.mark.parametrize(("recipe", "vector"), [("fp8", 64 + 2), ("identity", 2 * 64)])
def test_baselines_are_rows_beside_packed_codecs(recipe: str, vector: int, capsys: pytest.CaptureFixture[str]):
    assert run([*TINY, "--no-dense", "--recipe", recipe, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["shapes"]["tiny"]["rows"]
    spec = ARG_SPECS["tiny"]
    assert row["name"] == f"{recipe} reference"
    assert row["nbytes"] == 2 * spec.batch * spec.num_kv_heads * spec.tokens * vector


def test_what_does_not_run_here_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> AttentionSpeed:
        raise NotImplementedError("no NVIDIA GPU")

    monkeypatch.setattr(bench_attention, "_time_cudnn", fails)
    monkeypatch.setattr(bench_attention, "torch_baselines", lambda spec, repeats, copies: {})
    assert run([*TINY, "--recipe", "turboquant-2"]) == 0
    assert "dense jax-cudnn: not measured: no NVIDIA GPU" in capsys.readouterr().err


def test_rows_are_written_as_they_come(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A run that ends at its second recipe leaves the rows of the first."""
    out = tmp_path / "rows.json"
    words = [*TINY, "--recipe", "turboquant-4", "--recipe", "no such codec", "--no-dense", "--out", str(out)]
    assert run(words) == 2
    assert "no such codec" in capsys.readouterr().err
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["shapes"]["tiny"]["rows"]] == ["turboquant-4 reference"]


@pytest.fixture
def stopped(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """What a run leaves that is stopped after its second row: the floor, and one recipe of two."""
    out, rows = tmp_path / "made" / "rows.json", []

    def measure(*arguments: Any, on_row: Callable[[AttentionSpeed], None], **options: Any) -> object:
        def stop(row: AttentionSpeed) -> None:
            rows.append(row)
            on_row(row)
            if len(rows) == 2:
                raise KeyboardInterrupt

        return bench_attention.bench_attention(*arguments, on_row=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(attention_table, "bench_attention", measure)
        assert run([*TINY, *TWO_RECIPES, "--out", str(out)]) == 130
    return out


def test_a_stopped_run_goes_on(
    stopped: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    left = json.loads(stopped.read_text())
    assert left["complete"] is False
    kept = left["shapes"]["tiny"]["rows"]
    assert [row["name"] for row in kept] == ["floor copy", "turboquant-4 reference"]
    made, random_layers = [], bench_attention.random_layers
    monkeypatch.setattr(bench_attention, "random_layers", lambda *spec: made.append(spec[1]) or random_layers(*spec))
    capsys.readouterr()
    assert run([*TINY, *TWO_RECIPES, "--resume", "--out", str(stopped), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(made) == 1
    assert "has 2 rows, which are not measured again" in printed.err
    document = json.loads(stopped.read_text())
    assert document == {"complete": True, **json.loads(printed.out)}
    *first, last = document["shapes"]["tiny"]["rows"]
    assert first == kept
    assert last["name"] == "int8 reference"
    # Whatever is asked for next is added; what is there stays.
    assert run([*TINY, "--recipe", "int8", "--no-dense", "--resume", "--out", str(stopped)]) == 0
    assert json.loads(stopped.read_text())["shapes"] == document["shapes"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("environment", "devices"), ["NVIDIA H100"], "devices is ['NVIDIA H100'] there, ['cpu"),
        (("environment", "packages", "jax"), "0.1", "holds rows of another run: jax is 0.1 there, "),
        (("repeats",), 51, "repeats is 51 there, 3 here"),
        (("logits",), True, "logits is True there, False here"),
        (("shapes", "tiny", "tokens"), 1024, "tiny: tokens is 1024 there, 512 here"),
        (("shapes",), {"vast": {"batch": 1, "rows": []}}, "vast: batch is 1 there, None here"),
        (("shapes",), {"tiny": {}}, "was not written by kakeya bench attention"),
        (("shapes",), [], "was not written by kakeya bench attention"),
    ],
)
def test_rows_of_another_run_are_refused(
    path: tuple[str, ...], value: object, message: str, stopped: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    document = json.loads(stopped.read_text())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    stopped.write_text(json.dumps(document))
    before = stopped.read_bytes()
    capsys.readouterr()
    assert run([*TINY, *TWO_RECIPES, "--resume", "--out", str(stopped)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith("name another file")
    assert stopped.read_bytes() == before


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}"])
def test_another_file_is_refused(text: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "notes.json"
    path.write_text(text)
    assert run([*TINY, "--resume", "--out", str(path)]) == 2
    assert "was not written by kakeya bench attention; name another file" in capsys.readouterr().err
    assert path.read_text() == text


def test_resuming_needs_a_file(capsys: pytest.CaptureFixture[str]):
    assert run([*TINY, "--resume"]) == 2
    assert "name it with --out FILE" in capsys.readouterr().err


def test_saved_logits_are_not_measured_again(tmp_path: pathlib.Path):
    save = tmp_path / "logits.json"
    words = ["bench", "attention", "--logits", "--shape", "tiny", "--repeats", "2", "--resume", "--out", str(save)]
    assert run(words) == 0
    first = json.loads(save.read_text())
    assert run(words) == 0
    assert json.loads(save.read_text())["shapes"] == first["shapes"]


def test_logits_alone(capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "attention", "--logits", "--shape", "tiny", "--repeats", "2", "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["shapes"]["tiny"]["rows"]
    spec = ARG_SPECS["tiny"]
    assert [(row["name"], row["nbytes"]) for row in rows] == [("dense logits", spec.dense_nbytes // 2)]
    assert "turboquant-4 logits: not measured: no NVIDIA GPU" in printed.err
    dense, coded = bench_logits(spec, ["turboquant-4"], repeats=2, interpret=True)
    assert coded.name == "turboquant-4 logits"
    assert dense.nbytes / coded.nbytes == 2 * spec.head_dim / (spec.head_dim / 2 + 2)
    said = []
    assert len(bench_logits(spec, ["fp8"], repeats=2, interpret=True, on_skip=lambda *each: said.append(each))) == 1
    assert said == [("fp8 logits", "keys are not of turboquant")]


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--shape", "huge"), "unknown shape 'huge'; known: b1-k8-g4-128k"), (("--repeats", "1"), "repeats=1")],
)
def test_wrong_options(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "attention", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_fastest_dense_implementation_counts():
    def row(name: str, milliseconds: float) -> AttentionSpeed:
        return AttentionSpeed(
            name=name,
            milliseconds=milliseconds,
            quartiles=(0.0, 1.0),
            nbytes=1,
            temporary_nbytes=None,
            compile_seconds=None,
        )

    rows = [row("floor copy", 0.1), row("dense a", 0.3), row("dense b", 0.2), row("turboquant-4 triton", 0.05)]
    found = best_dense(rows)
    assert found is not None
    assert found.name == "dense b"
    assert best_dense(rows[:1]) is None


def test_shapes_that_count_hold_half_a_gigabyte():
    for name, spec in ARG_SPECS.items():
        assert spec.goal == (spec.dense_nbytes >= 2**29), name

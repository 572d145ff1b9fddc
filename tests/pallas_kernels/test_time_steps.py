"""``scripts/time_steps.py``: what it refuses, and the rows that it adds; what it measures takes a GPU."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import pytest
from script_modules import SCRIPTS, load_script

from kakeya_jax.eval import bench_attention
from kakeya_jax.pallas_kernels.attention import Attended
from kakeya_jax.pallas_kernels.attention.program_counts import HeadShares

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="needs a checkout")


@pytest.fixture
def script() -> ModuleType:
    return load_script("time_steps")


def on(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform=platform, device_kind="a device")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vast", "turboquant-4"), "no shape vast; there are b1-k8-g4-128k, "),
        (("tiny", "turboquant-4", "2", "--", "-1"), "-1 is not like 6, 6+4:20:2 or 6+4:20:2x4t4"),
        (("tiny", "no-codec"), "no-codec"),
        (("tiny", "turboquant-4", "2"), "cpu runs no such kernels; run it on a GPU"),
    ],
)
def test_refusals_are_one_line(
    words: tuple[str, ...],
    message: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    on("cpu", monkeypatch)
    out = tmp_path / "rows.jsonl"
    assert script.main([str(out), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("time_steps.py: ")
    assert message in line
    assert not out.exists()


def test_a_row_is_added_for_each_number_of_programs(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    on("gpu", monkeypatch)
    monkeypatch.setattr(script, "REPEATS", 2)
    monkeypatch.setattr(bench_attention, "copies", lambda nbytes: 1)
    asked: list[HeadShares | None] = []

    def attention(query: jax.Array, *streams: object, splits: HeadShares | None, **options: object) -> Attended:
        del streams, options
        asked.append(splits)
        if splits == HeadShares(3):
            raise NotImplementedError("no Mosaic GPU kernel for this: three")
        return Attended(query, query[..., 0])

    monkeypatch.setattr(script, "attention_mosaic_gpu", attention)
    out = tmp_path / "rows.jsonl"
    assert script.main([str(out), "tiny", "turboquant-4"]) == 0
    assert script.main([str(out), "tiny", "turboquant-4", "2", "6+4:20:2", "5+1:9:3x4t2", "3"]) == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["shape"], row["recipe"], row["shares"]) for row in rows] == [
        ("tiny", "turboquant-4", shares) for shares in ("0", "2", "6+4:20:2", "5+1:9:3x4t2")
    ]
    assert all(row["quartiles"][0] <= row["milliseconds"] <= row["quartiles"][1] for row in rows)
    uneven = HeadShares(10, 4, (20, 2)), HeadShares(6, 1, (9, 3), residents=4, teams=2)
    assert set(asked) == {None, HeadShares(2), *uneven, HeadShares(3)}

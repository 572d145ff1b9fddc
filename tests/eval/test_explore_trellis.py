"""The table of what more states buy: a row for each code, its errors falling with the states."""

import importlib.util
import pathlib
from typing import Any

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "explore_trellis.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs a checkout")


def test_a_row_for_each_code(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    spec = importlib.util.spec_from_file_location("explore_trellis", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"WIDTHS": (1, 2), "RUNS": 128, "CODES": {4: script.CODES[4], 16: script.CODES[16]}}.items():
        monkeypatch.setattr(script, name, value)
    script.main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[float(cell) for cell in row.strip("| ").split(" | ")] for row in rows]
    assert [row[0] for row in cells] == [4, 16]
    for few, many in zip(cells[0][1:3], cells[1][1:3], strict=True):
        assert 0.7 < many < few < 0.9
    assert all(nanoseconds > 0 for row in cells for nanoseconds in row[3:])

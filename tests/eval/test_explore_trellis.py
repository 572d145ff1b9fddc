"""The table of what more states buy: a row for each code, its errors falling with the states."""

import pathlib
from typing import Any

import pytest
from script_modules import load_script

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "explore_trellis.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs a checkout")


def test_a_row_for_each_code(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = load_script("explore_trellis")
    for name, value in {"WIDTHS": (1, 2), "RUNS": 128, "CODES": {4: script.CODES[4], 16: script.CODES[16]}}.items():
        monkeypatch.setattr(script, name, value)
    script.main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[float(cell) for cell in row.strip("| ").split(" | ")] for row in rows]
    assert [row[0] for row in cells] == [4, 16]
    for few, many in zip(cells[0][1:3], cells[1][1:3], strict=True):
        assert 0.7 < many < few < 0.9
    assert all(nanoseconds > 0 for row in cells for nanoseconds in row[3:])

"""Finished cells survive a kill, are found by their request, and are never half read."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from kakeya_jax.eval.cells import Cells, cell_key

ONE, TWO = {"recipe": "int4", "passages": 2}, {"recipe": "int8", "passages": 2}


def test_cells_are_found_again_by_request(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "cells.jsonl"
    with Cells(path) as cells:
        assert ONE not in cells
        assert cells.get(ONE) is None
        cells.add(ONE, {"kl": 0.1, "interval": (1, 2)})
        assert cells.get(ONE) == {"kl": 0.1, "interval": [1, 2]}
    with Cells(path) as cells:
        assert len(cells) == 1
        assert cells.get({"passages": 2, "recipe": "int4"}) == {"kl": 0.1, "interval": [1, 2]}
        assert TWO not in cells
        cells.add(TWO, None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["request"] for line in lines] == [ONE, TWO]
    assert [line["key"] for line in lines] == [cell_key(ONE), cell_key(TWO)]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_half_written_line_is_dropped(tmp_path: pathlib.Path, cut: int) -> None:
    path = tmp_path / "cells.jsonl"
    with Cells(path) as cells:
        cells.add(ONE, 1)
        cells.add(TWO, 2)
    unbroken = path.read_bytes()
    path.write_bytes(unbroken[:-cut])
    with Cells(path) as cells:
        assert ONE in cells
        assert TWO not in cells
        cells.add(TWO, 2)
    assert path.read_bytes() == unbroken


def test_damage_elsewhere_is_an_error(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.jsonl"
    with Cells(path) as cells:
        cells.add(ONE, 1)
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .* is no finished cell"):
        Cells(path)
    path.write_text(path.read_text()[3:].replace("int4", "int8"))
    with pytest.raises(ValueError, match=r"line 1 of .* was changed"):
        Cells(path)


def test_one_writer_and_plain_json(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.jsonl"
    with Cells(path) as cells:
        with pytest.raises(ValueError, match="another run is writing"):
            Cells(path)
        with pytest.raises(ValueError, match="plain JSON"):
            cells.add(ONE, float("nan"))
        with pytest.raises(ValueError, match="plain JSON"):
            cells.add(ONE, {1, 2})
        cells.add(ONE, 1)
        with pytest.raises(ValueError, match="finished already"):
            cells.add(ONE, 1)
    with Cells(path) as cells:
        assert len(cells) == 1


def test_a_killed_writer_leaves_whole_lines(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cells.jsonl"
    program = (
        "import sys\nfrom kakeya_jax.eval.cells import Cells\n"
        "with Cells(sys.argv[1]) as cells:\n"
        "    for i in range(10**6):\n        cells.add({'i': i}, 'x' * 10000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    with Cells(path) as cells:
        count = len(cells)
        assert count >= 10
        assert all(cells.get({"i": i}) == "x" * 10000 for i in range(count))
        assert {"i": count} not in cells

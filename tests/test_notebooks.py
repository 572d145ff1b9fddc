"""Notebooks are their paired scripts, were run from top to bottom, and say nothing of the machine that ran them."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import jupytext
import matplotlib as mpl
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
ONLY_READ = [name for name in NAMES if "kakeya_jax" not in (FOLDER / f"{name}.py").read_text()]
"""What committed files say, and measure nothing."""


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_has_its_script() -> None:
    assert len(NAMES) > 1
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"conftest"}
    assert scripts == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_equals_its_script(name: str) -> None:
    script = jupytext.reads((FOLDER / f"{name}.py").read_text(), fmt="py:percent")
    again = f"run: cd notebooks && jupytext --to ipynb --update {name}.py, and execute it"
    assert cells(read(name)) == cells(script), again


@pytest.mark.parametrize("name", NAMES)
def test_notebook_was_run_in_order_and_names_no_machine(name: str) -> None:
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    text = nbformat.writes(nbformat.from_dict({**notebook, "cells": [_without_pictures(cell) for cell in code]}))
    assert re.findall(r"(?<![\w.\-])/(?:work|home|root|tmp|Users|usr)/[\w./-]*", text) == []


@pytest.mark.parametrize("name", ONLY_READ)
def test_what_it_printed_is_what_the_files_say_today(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    names: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}):
        for cell in (cell for cell in read(name).cells if cell.cell_type == "code"):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(cell.source, names)
            stored = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            assert printed.getvalue() == stored, f"run: cd notebooks && jupyter execute --inplace {name}.ipynb"


def test_there_are_notebooks_that_only_read() -> None:
    assert ONLY_READ


def _without_pictures(cell: Any) -> Any:
    outputs = [{**output, "data": {}} if "image/png" in output.get("data", {}) else output for output in cell.outputs]
    return {**cell, "outputs": outputs}

"""Tables of times of attention kernels: the committed pages are what the files say, bold is by unrounded ratios."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "scripts" / "make_kernel_tables.py").is_file(), reason="needs a checkout")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("make_kernel_tables")


def shape(script: ModuleType, dense: float, packed: float, nbytes: float = 1.07e9, goal: bool = True) -> Any:
    """One dense row and one of ``turboquant-4``."""
    rows = [
        {"name": "dense jax-cudnn", "milliseconds": dense, "nbytes": nbytes},
        {"name": "turboquant-4 mosaic_gpu", "milliseconds": packed, "nbytes": nbytes / 4},
    ]
    return script.Shape("one", {"batch": 1, "num_kv_heads": 8, "tokens": 1024, "goal": goal, "rows": rows})


def test_the_pages_are_made_of_the_files(script: ModuleType) -> None:
    made = script.blocks()
    for path in script.PAGES:
        text = path.read_text()
        assert script.fill(text, made) == text, "run scripts/make_kernel_tables.py"


def test_all_that_is_made_stands_in_a_page(script: ModuleType) -> None:
    text = "".join(path.read_text() for path in script.PAGES)
    for name, made in script.blocks().items():
        assert f"<!-- {name}: made by scripts/make_kernel_tables.py -->\n\n{made}\n\n<!-- end -->" in text


def test_what_stands_around_the_tables_stays(script: ModuleType) -> None:
    page = "a\n<!-- x: made by scripts/make_kernel_tables.py -->\nold\n<!-- end -->\nb | c\n<!-- end -->\n"
    once = script.fill(page, {"x": "| new |"})
    assert once == page.replace("old", "\n| new |\n")
    assert script.fill(once, {"x": "| new |"}) == once


@pytest.mark.parametrize(
    ("times", "nbytes", "goal", "text"),
    [
        (3.0, 1.07e9, True, "**3.00**"),
        (2.999, 1.07e9, True, "3.00"),
        (2.6, 1.07e9, True, "2.60"),
        (2.6, 0.54e9, True, "**2.60**"),
        (2.499, 0.54e9, True, "2.50"),
        (3.1, 0.03e9, True, "3.10"),
        (3.1, 1.07e9, False, "3.10"),
    ],
)
def test_bold_where_all_goals_are_reached(script: ModuleType, times: float, nbytes: float, goal: bool, text: str):
    assert shape(script, times, 1.0, nbytes, goal).times_text("turboquant-4") == text


def test_a_missed_goal_shows_that_it_is_missed(script: ModuleType) -> None:
    table = script.goals_table([shape(script, 2.9996, 1.0), shape(script, 3.2, 1.0)])
    assert "| `turboquant-4` | 2.5 times from 0.5 GB on | 2 of 2 |  |" in table
    assert "| `turboquant-4` | 3 times from 1 GB on | 1 of 2 | one 2.9996 |" in table


def test_a_goal_is_asked_of_measured_recipes_alone(script: ModuleType) -> None:
    assert "`klt-2`" not in script.goals_table([shape(script, 3.0, 1.0)])


def test_options_stay_beside_their_values(script: ModuleType) -> None:
    command = script._command({"command": "kakeya bench " + " ".join(["--recipe turboquant-4"] * 20)})
    assert command.count("--recipe turboquant-4") == 20
    assert max(map(len, command.splitlines())) < 170

"""The README's code runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


def code_of(section: str) -> list[str]:
    """The Python blocks under a heading."""
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_first_lines_show_a_recipe_and_a_calibrated_one() -> None:
    first, calibrated = code_of("Ten lines")
    assert "Recipe.named" in first
    assert "tables_for" in calibrated


def test_first_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Both blocks, one after the other: the second goes on with the names of the first."""
    names: dict[str, Any] = {}
    for block in code_of("Ten lines"):
        exec(block, names)
        assert names["logits"].shape == (1, 1024, names["model"].config.vocab_size)
        assert names["cache"].length.tolist() == [1024]
    assert names["cache"].recipe == names["recipe"]
    assert capsys.readouterr().out == "(1, 1024, 6144) [1024]\n"

"""Writes docs/ablations.md from docs/results/ablations/: its tables from the JSON, its prose from Markdown.

python scripts/make_ablations.py            writes the page
python scripts/make_ablations.py --check    exits with 1 if the page is not what the files say
"""

import json
import pathlib
import sys

from kakeya_jax.eval.ablations.registry import ABLATIONS
from kakeya_jax.eval.ablations.results import AblationResult, result_from_dict
from kakeya_jax.eval.ablations.table import notes, result_lines, rows_table

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "results" / "ablations"
PAGE = ROOT / "docs" / "ablations.md"
MODELS = ("house-qwen2-30m", "house-qwen3-30m", "demo")
"""In the order of the page; what has no file yet is left out."""


def main() -> int:
    """Writes or checks the page."""
    page = build()
    if "--check" not in sys.argv:
        PAGE.write_text(page)
        return 0
    return int(not PAGE.is_file() or PAGE.read_text() != page)


def build() -> str:
    """The whole page."""
    results = {model: load(FOLDER / f"{model}.json") for model in MODELS if (FOLDER / f"{model}.json").is_file()}
    parts = [(FOLDER / "introduction.md").read_text().strip()]
    for name, ablation in ABLATIONS.items():
        parts.append(f"## {name}")
        parts.append("\n".join([f"**{ablation.question}**", "", *(f"Claimed. {claim}." for claim in ablation.claims)]))
        parts.append(" ".join(notes(ablation)))
        measured = {model: found[name] for model, found in results.items() if name in found}
        for model, result in measured.items():
            parts.append(f"### {name}: {model}")
            parts.append(rows_table(result))
            parts.append("\n".join(f"- {line}" for line in result_lines(result)))
        left = [model for model in MODELS if model not in measured]
        if left:
            parts.append(f"Not measured yet: {', '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def load(path: pathlib.Path) -> dict[str, AblationResult]:
    """Results by the name of their ablation."""
    found = [result_from_dict(data) for data in json.loads(path.read_text())["ablations"]]
    return {result.ablation: result for result in found}


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/results/flagship-bytes.json and docs/flagship-bytes.md: bytes of named recipes on large models.

Arithmetic from the shapes in a model's config.json; takes some minutes.

python scripts/make_flagship.py            counts, and writes both
python scripts/make_flagship.py --check    exits with 1 if the page is not what the JSON says
"""

import json
import pathlib
import sys
from typing import Any

from kakeya_jax.eval.config_shape import read_config_shape
from kakeya_jax.eval.run_explain import explain_config
from kakeya_jax.recipe import Recipe

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = ROOT / "tests" / "eval" / "configs"
DATA = ROOT / "docs" / "results" / "flagship-bytes.json"
PAGE = ROOT / "docs" / "flagship-bytes.md"
MODELS = {
    "llama-3.1-8b": "Llama-3.1-8B",
    "qwen2.5-7b": "Qwen2.5-7B",
    "qwen3-8b": "Qwen3-8B",
    "deepseek-r1-distill-qwen-1.5b": "DeepSeek-R1-Distill-Qwen-1.5B",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
}
"""Files of ``CONFIGS`` and the names of their models."""

CONTEXTS = (4096, 131072)
LONG = CONTEXTS[-1]


def main() -> int:
    """Counts and writes, or checks the page."""
    if "--check" in sys.argv:
        return int(PAGE.read_text() != page(json.loads(DATA.read_text())))
    data = {"command": "python scripts/make_flagship.py", "contexts": list(CONTEXTS), "models": count()}
    DATA.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    PAGE.write_text(page(data))
    return 0


def count() -> list[dict[str, Any]]:
    """Every named recipe on every model."""
    return [
        {
            "model": name,
            "config": f"{stem}.json",
            **vars(read_config_shape(CONFIGS / f"{stem}.json").shape),
            "rows": [count_recipe(stem, recipe) for recipe in Recipe.names()],
        }
        for stem, name in MODELS.items()
    ]


def count_recipe(stem: str, recipe: str) -> dict[str, Any]:
    """One recipe on one model: bytes at every context."""
    found = explain_config(
        read_config_shape(CONFIGS / f"{stem}.json"), Recipe.named(recipe), CONTEXTS, name=f"{stem}.json"
    )
    last = found.reports[-1]
    return {
        "recipe": recipe,
        "all_in_bits": last.all_in_bits_per_value,
        "bytes": [report.nbytes for report in found.reports],
        "dense_bytes": [report.dense_nbytes for report in found.reports],
        "bytes_per_token": [report.bytes_per_token for report in found.reports],
        "ratio": [report.compression_ratio for report in found.reports],
        "table_bytes": last.table_nbytes,
        "needs_calibration": Recipe.named(recipe).needs_calibration,
    }


def page(data: dict[str, Any]) -> str:
    """The Markdown page: GiB and bytes per token at the long context."""
    models = data["models"]
    lines = [
        "# Bytes on models of 1.5 to 30 billion parameters",
        "",
        "<!-- made by scripts/make_flagship.py -->",
        "",
        "Arithmetic, not measurement: every array of a full cache, by its shape, from the models' `config.json` alone "
        "(layers, key/value heads, head dimension; the files are in `tests/eval/configs/`, written by hand from the "
        "published ones). **Nothing here says what a recipe does to these models' predictions**; the qualities in "
        "[results](results.md) were measured on small models and are not carried over. "
        "`python scripts/make_flagship.py` makes this page and "
        "`docs/results/flagship-bytes.json`, which has every named recipe at 4,096 tokens "
        "too; for any other config, recipe or context:",
        "",
        "```bash",
        "kakeya explain klt-2 --config-json tests/eval/configs/llama-3.1-8b.json --context 4096 --context 131072",
        "```",
        "",
        f"One sequence of {LONG:,} tokens: GiB held, the exact window included, and bytes per token; in the first "
        "column bits per coded value, all-in, on the first model. \\*: takes calibrated tables, which are not in the "
        "other columns; they belong to the model, once for all sequences, and the last column has their MiB on the "
        "first model.",
        "",
        "| recipe | bits | " + " | ".join(f"{each['model']} GiB | bytes/token" for each in models) + " | tables MiB |",
        "|---|--:|" + "--:|--:|" * len(models) + "--:|",
    ]
    for index, row in enumerate(models[0]["rows"]):
        if row["recipe"].startswith("klt-storage"):
            continue  # what counts of those is the size of entropy-coded files, which depends on the text
        cells = []
        for each in models:
            found = each["rows"][index]
            cells += [f"{found['bytes'][-1] / 2**30:.3f}", f"{found['bytes_per_token'][-1]:,.0f}"]
        star = "\\*" if row["needs_calibration"] else ""
        tables = f"{row['table_bytes'] / 2**20:.1f}" if row["table_bytes"] else ""
        lines.append(f"| `{row['recipe']}`{star} | {row['all_in_bits']:.3f} | {' | '.join(cells)} | {tables} |")
    shapes = "; ".join(
        f"{each['model']} {each['num_layers']} layers, {each['num_kv_heads']} key/value heads of {each['head_dim']}"
        for each in models
    )
    lines += [
        "",
        f"Shapes: {shapes}. Qwen3-30B-A3B is a mixture of experts: its attention, and so its cache, is of the ordinary "
        "grouped kind, but the decoder here does not run the model.",
        "",
        "`klt` and `klt-pairs` without calibration: the widths of channel groups are stand-ins. Calibrated ones spend "
        "at most the same payload, so these bytes are upper bounds, and off by less than one step of one group. "
        "`klt-storage` is left out: its files are entropy-coded, and their size depends on the text. A fixed "
        "`boundary` of a recipe (some of the `ladder-*`) is a smaller share of these deeper models "
        "than of the house models.",
        "",
        "Multi-head latent attention (DeepSeek-V2 and V3) is not covered: each layer keeps one latent vector and a "
        "rotary key a token instead of keys and values of heads. `kakeya explain` refuses such a config, and "
        "those of layers that do not keep every token (sliding windows, linear attention), with a line that says so.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""Writes the tables of times in docs/kernels.md and README.md from docs/results/kernels/.

What is made stands between ``<!-- NAME: made by scripts/make_kernel_tables.py -->`` and ``<!-- end -->``.

python scripts/make_kernel_tables.py            writes the pages
python scripts/make_kernel_tables.py --check    exits with 1 if a page is not what the JSON says
"""

import dataclasses
import datetime
import json
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = "docs/results/kernels"
PAGES = (ROOT / "docs" / "kernels.md", ROOT / "README.md")
ATTENTION, ATTENTION_ELSEWHERE = "attention-h200", "attention-h100"
ONE_SHAPE = "b8-k8-g4-32k"
"""The shape that all recipes were measured on."""

BESICOVITCH = "key=turboquant(bits=4),value=besicovitch"
HADAMARD = "turboquant(bits=4,rotation=hadamard)"
MAIN = ("turboquant-4", HADAMARD, "int4", "turboquant-2", "kivi-2", "klt-3", "klt-2", BESICOVITCH)
LABELS = {
    BESICOVITCH: "`turboquant-4` K, `besicovitch` V",
    HADAMARD: "`turboquant-4`, rotated by `hadamard`",
    "key=turboquant(bits=2),value=besicovitch": "`turboquant-2` K, `besicovitch` V",
    "key=kakeya(rank=64),value=turboquant(bits=4)": "`kakeya` K of rank 64, `turboquant-4` V",
    "key=kakeya,value=turboquant(bits=4)": "`kakeya` K of full rank, `turboquant-4` V",
}
"""Of recipes that have no name."""

IN_THE_README = (
    *MAIN,
    "key=kakeya(rank=64),value=turboquant(bits=4)",
    "key=kakeya,value=turboquant(bits=4)",
    "fp8",
    "int8",
    "identity",
)
LOGITS_GATE = 2.0
PREFILL_GOAL = 0.05


@dataclasses.dataclass(frozen=True)
class Goal:
    """Times the best dense attention, on shapes of at least so many bytes as dense bfloat16."""

    times: float
    nbytes: float
    recipes: tuple[str, ...]


GOALS = (
    Goal(2.5, 0.5e9, ("turboquant-4", HADAMARD, "int4", "int4-affine", "kivi-4")),
    Goal(3.0, 1e9, ("turboquant-4", HADAMARD, "int4", "int4-affine", "kivi-4")),
    Goal(3.5, 0.5e9, ("turboquant-2", "kivi-2")),
    Goal(2.5, 0.5e9, ("klt-3",)),
    Goal(3.0, 0.5e9, ("klt-2",)),
    Goal(2.0, 0.5e9, (BESICOVITCH, "key=turboquant(bits=2),value=besicovitch")),
    Goal(1.3, 0.5e9, ("key=kakeya(rank=64),value=turboquant(bits=4)", "key=kakeya,value=turboquant(bits=4)")),
)


class Shape:
    """One shape of ``kakeya bench attention``: its packed rows by recipe, and the best dense one."""

    def __init__(self, name: str, held: dict[str, Any]):
        self.name = name
        self.vectors = held["batch"] * held["num_kv_heads"] * held["tokens"]
        self.has_goal = held["goal"]
        self.baselines = [row for row in held["rows"] if not row["name"].endswith(" mosaic_gpu")]
        self.packed = {
            row["name"].removesuffix(" mosaic_gpu"): row for row in held["rows"] if row not in self.baselines
        }
        dense = [row for row in self.baselines if row["name"].startswith("dense ")]
        self.dense = min(dense, key=lambda row: row["milliseconds"])

    def times(self, recipe: str) -> float:
        """Over the best dense attention."""
        return self.dense["milliseconds"] / self.packed[recipe]["milliseconds"]

    def goals(self, recipe: str) -> list[Goal]:
        """What was asked of a recipe here."""
        large = [goal for goal in GOALS if self.has_goal and self.dense["nbytes"] >= goal.nbytes]
        return [goal for goal in large if recipe in goal.recipes]

    def times_text(self, recipe: str) -> str:
        """Bold where all goals are reached, by the number before it is rounded."""
        goals = self.goals(recipe)
        return _bold(
            f"{self.times(recipe):.2f}", bool(goals) and all(self.times(recipe) >= each.times for each in goals)
        )


def main() -> int:
    """Writes or checks the pages."""
    made = blocks()
    pages = {path: fill(path.read_text(), made) for path in PAGES}
    if "--check" in sys.argv:
        return int(any(path.read_text() != text for path, text in pages.items()))
    for path, text in pages.items():
        path.write_text(text)
    return 0


def fill(text: str, made: dict[str, str]) -> str:
    """A page with what stands between its markers made anew."""
    marked = r"(<!-- ([\w-]+): made by scripts/make_kernel_tables\.py -->\n).*?(<!-- end -->)"
    return re.sub(marked, lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", text, flags=re.DOTALL)


def blocks() -> dict[str, str]:
    """All that is made, by the name of its marker."""
    attention, other = _load(ATTENTION), _load(ATTENTION_ELSEWHERE)
    shapes = [Shape(name, held) for name, held in attention["shapes"].items()]
    elsewhere = [Shape(name, held) for name, held in other["shapes"].items()]
    large = [shape for shape in shapes if shape.has_goal]
    large_elsewhere = [shape for shape in elsewhere if shape.has_goal]
    one = next(shape for shape in shapes if shape.name == ONE_SHAPE)
    decode = _load("decode-h200")
    return {
        "shapes": _paragraphs(_conditions(attention), shapes_table(large), allocations(shapes)),
        "goals": goals_table(large),
        "shapes-elsewhere": _paragraphs(_conditions(other, ATTENTION_ELSEWHERE), shapes_table(large_elsewhere)),
        "goals-elsewhere": goals_table(large_elsewhere),
        "recipes": _paragraphs(_conditions(attention), recipes_table(one), skeleton(one)),
        "rotations": rotations_table(),
        "short": _paragraphs(_conditions(attention), short_table([shape for shape in shapes if not shape.has_goal])),
        "commands": _command(attention),
        "decode": decode_block(decode),
        "prefill": prefill_block(_load("prefill-h100")),
        "logits": logits_block(_load("logits-h200")),
        "speed": _paragraphs(
            _conditions(attention),
            readme_table(large, one, large_elsewhere),
            f"The last column: {_sentence_inside(_conditions(other, ATTENTION_ELSEWHERE))}.",
            decode_sentence(decode),
        ),
    }


def shapes_table(shapes: list[Shape]) -> str:
    """The shapes that goals were set for, and those recipes of the first columns that were measured."""
    recipes = [recipe for recipe in MAIN if any(recipe in shape.packed for shape in shapes)]

    def cell(shape: Shape, recipe: str) -> str:
        if recipe not in shape.packed:
            return "no kernel"
        return f"{shape.packed[recipe]['milliseconds']:.4f}, {shape.times_text(recipe)}"

    return _table(
        ["shape", "GB", "best dense, ms", *map(_label, recipes)],
        ([shape.name, *_dense_cells(shape), *(cell(shape, recipe) for recipe in recipes)] for shape in shapes),
    )


def allocations(shapes: list[Shape]) -> str:
    """What packed calls allocate."""
    rows = [(recipe, row["temporary_nbytes"] / 1e6) for shape in shapes for recipe, row in shape.packed.items()]
    klt = max(size for recipe, size in rows if recipe.startswith("klt"))
    rest = max(size for recipe, size in rows if not recipe.startswith("klt"))
    return f"A packed call allocates at most {rest:.1f} MB besides its result, one of `klt` {klt:.0f} MB."


def goals_table(shapes: list[Shape]) -> str:
    """Every goal, and where it is missed."""
    rows = []
    for goal in GOALS:
        for recipe in goal.recipes:
            asked = [shape for shape in shapes if recipe in shape.packed and goal in shape.goals(recipe)]
            if not asked:
                continue
            missed = [shape for shape in asked if shape.times(recipe) < goal.times]
            rows.append(
                [
                    _label(recipe),
                    f"{goal.times:g} times from {goal.nbytes / 1e9:g} GB on",
                    f"{len(asked) - len(missed)} of {len(asked)}",
                    ", ".join(f"{shape.name} {_below(shape.times(recipe), goal.times)}" for shape in missed),
                ]
            )
    return _table(["recipe", "goal", "reached on", "missed on"], rows, "llll")


def recipes_table(shape: Shape) -> str:
    """All recipes on one shape, and what dense attention and a copy take there."""
    rows = [
        [row["name"], f"{row['nbytes'] / shape.vectors:.0f}", f"{row['milliseconds']:.4f}", f"{row['ratio']:.2f}", ""]
        for row in shape.baselines
    ]
    for recipe, row in shape.packed.items():
        goals = shape.goals(recipe)
        goal = f"{max(goal.times for goal in goals):g}" if goals else ""
        size = f"{row['nbytes'] / shape.vectors:.0f}"
        rows.append([_label(recipe), size, f"{row['milliseconds']:.4f}", shape.times_text(recipe), goal])
    return _table(["", "bytes a token and head", "ms", "times", "goal"], rows)


def skeleton(shape: Shape) -> str:
    """What is packing's, and what is the rest of the kernel's."""
    ours, four = shape.packed["identity"], shape.packed["turboquant-4"]
    cost = ours["milliseconds"] / shape.dense["milliseconds"] - 1
    gained, bytes_gained = (ours[key] / four[key] for key in ("milliseconds", "nbytes"))
    return (
        f"So the skeleton costs {100 * cost:.0f} % beside the best dense attention, and all that is faster than that "
        f"is packing: `turboquant-4` is {gained:.2f} times as fast as dense attention in its own skeleton, where bytes "
        f"would allow {bytes_gained:.2f}."
    )


def rotations_table() -> str:
    """KL of both kinds of rotations, over seeds."""
    rows = []
    for model in ("house-qwen2-30m", "house-qwen3-30m"):
        found = json.loads((ROOT / "docs/results/checks" / f"rotations.{model}.eval_wikitext2_valid.json").read_text())
        for bits in (4, 2):
            cells: list[str] = []
            for kind in ("", "rotation=hadamard,"):
                start = f"turboquant(bits={bits},{kind}seed="
                kl = [1e3 * row["kl_mean"] for row in found["rows"] if row["recipe"].startswith(start)]
                cells += [f"{min(kl):#.3g} to {max(kl):#.3g}", f"{sum(kl) / len(kl):#.3g}"]
            rows.append([model, str(bits), *cells])
    return _table(["", "bits", "`haar`", "mean", "`hadamard`", "mean"], rows)


def short_table(shapes: list[Shape]) -> str:
    """Caches that no goal was set for."""
    recipes = list(dict.fromkeys(recipe for shape in shapes for recipe in shape.packed))

    def cell(shape: Shape, recipe: str) -> str:
        return f"{shape.packed[recipe]['milliseconds']:.4f}, {shape.times(recipe):.2f}"

    return _table(
        ["shape", "GB", "best dense, ms", *map(_label, recipes)],
        ([shape.name, *_dense_cells(shape), *(cell(shape, recipe) for recipe in recipes)] for shape in shapes),
    )


def readme_table(shapes: list[Shape], one: Shape, elsewhere: list[Shape]) -> str:
    """Times over dense attention on one shape, and from the least to the most on all of them, and on another GPU."""
    rows = [
        [_label(recipe), f"{one.times(recipe):.2f}", _spread(shapes, recipe), _spread(elsewhere, recipe)]
        for recipe in IN_THE_README
    ]
    return _table(["times the best dense attention", f"on {one.name}", "on all shapes", "on all, an H100"], rows)


def _spread(shapes: list[Shape], recipe: str) -> str:
    found = [shape.times(recipe) for shape in shapes if recipe in shape.packed]
    if not found:
        return "not measured"
    if len(found) == 1:
        return f"{found[0]:.2f}, one shape"
    return f"{min(found):.2f} to {max(found):.2f}, {len(found)} shapes"


def decode_block(data: dict[str, Any]) -> str:
    """Whole decode steps."""
    rows = [
        [
            "dense, cuDNN" if row["recipe"] == "dense" else f"`{row['recipe']}`, {row['how']}",
            "{:.2f} [{:.2f}, {:.2f}]".format(row["milliseconds"], *row["quartiles"]),
            f"{row['times_as_fast']:.2f}",
            f"{row['cache_nbytes'] / 1e9:.1f}",
            f"{row['step_nbytes'] / 1e6:.0f}",
            str(row["largest_batch"]),
        ]
        for row in data["rows"]
    ]
    header = ["", "ms a step", "times", "cache, GB", "a step allocates, MB", "most rows that fit"]
    return _paragraphs(_conditions(data, "decode-h200"), _table(header, rows), _command(data))


def decode_sentence(data: dict[str, Any]) -> str:
    """The whole model, for the README."""
    dense = next(row for row in data["rows"] if row["how"] == "dense")
    packed = next(row for row in data["rows"] if (row["recipe"], row["how"]) == ("turboquant-4", "packed"))
    note = f"; {_sentence_inside(data['about'])}" if "about" in data else ""
    return (
        f"A decode step of a whole model of Llama-3.1-8B's shape, {data['batch_size']} rows of {data['context']:,} "
        f"tokens, is {packed['times_as_fast']:.2f} times as fast with `{packed['recipe']}` as with dense cuDNN "
        f"attention, and {packed['largest_batch']} rows fit where {dense['largest_batch']} did "
        f"({_date(data)}, `{FOLDER}/decode-h200.json`{note})."
    )


def prefill_block(data: dict[str, Any]) -> str:
    """Encoding beside the forward pass."""
    rows = [
        [
            f"`{row['recipe']}`",
            f"{row['encode_milliseconds']:.0f}",
            f"{row['prefill_milliseconds']:,.0f}",
            _bold(f"{100 * row['share']:.1f} %", row["share"] <= PREFILL_GOAL),
        ]
        for row in data["rows"]
    ]
    header = ["recipe", "encoding K and V of all layers, ms", "the dense forward pass, ms", "share"]
    return _paragraphs(_conditions(data, "prefill-h100"), _table(header, rows), _command(data))


def logits_block(data: dict[str, Any]) -> str:
    """Logits beside a dense product, and the gate."""
    rows, reached = [], 0
    for held in data["shapes"].values():
        dense, *packed = held["rows"]
        cells = []
        for row in packed:
            times = dense["milliseconds"] / row["milliseconds"]
            reached += times >= LOGITS_GATE
            cells.append(f"{row['milliseconds']:.4f}, {_bold(f'{times:.2f}', times >= LOGITS_GATE)}")
        rows.append([f"{held['tokens']:,}", f"{dense['milliseconds']:.4f}", *cells])
    _, *packed = next(iter(data["shapes"].values()))["rows"]
    names = [f"`{row['name'].removesuffix(' logits')}`" for row in packed]
    verdict = f"The gate, {LOGITS_GATE:g} times, is reached by {reached} of these {len(rows) * len(names)} rows."
    table = _table(["tokens", "dense, ms", *names], rows)
    return _paragraphs(_conditions(data, "logits-h200"), table, verdict, _command(data))


def _load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / FOLDER / f"{name}.json").read_text())


def _conditions(data: dict[str, Any], name: str = ATTENTION) -> str:
    where = data["environment"]
    devices = where["devices"]
    device = f"One {devices[0]}" if len(devices) == 1 else f"{len(devices)} of {devices[0]}"
    versions = f"jax {where['packages']['jax']}, Python {where['python']}"
    note = f" {data['about']}" if "about" in data else ""
    return f"{device}, {versions}, {_date(data)}, medians of {data['repeats']} (`{FOLDER}/{name}.json`).{note}"


def _date(data: dict[str, Any]) -> str:
    day = datetime.date.fromisoformat(data["environment"]["date"])
    return f"{day.day} {day:%B %Y}"


def _sentence_inside(text: str) -> str:
    text = text.rstrip(".")
    return text[0].lower() + text[1:]


def _command(data: dict[str, Any]) -> str:
    lines = []
    for line in data["command"].splitlines():
        pairs = re.sub(r"(--[\w-]+) (?!-)", "\\1\0", line)  # an option and its value stay together
        wrapped = textwrap.wrap(pairs, 160, break_long_words=False, break_on_hyphens=False)
        lines.append(" \\\n    ".join(wrapped).replace("\0", " "))
    return "\n".join(["```bash", *lines, "```"])


def _label(recipe: str) -> str:
    return LABELS.get(recipe, f"`{recipe}`")


def _dense_cells(shape: Shape) -> list[str]:
    return [f"{shape.dense['nbytes'] / 1e9:.2f}", f"{shape.dense['milliseconds']:.4f}"]


def _below(times: float, goal: float) -> str:
    """With as many digits as show that it is less."""
    return next(text for digits in range(2, 17) if float(text := f"{times:.{digits}f}") < goal)


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _table(header: list[str], rows: Iterable[list[str]], sides: str = "") -> str:
    sides = sides or "l" + "r" * (len(header) - 1)
    rule = "|".join("---" if side == "l" else "--:" for side in sides)
    return "\n".join([_line(header), f"|{rule}|", *map(_line, rows)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/codecs.md from the code: every method's formula, options, bytes and source.

python scripts/make_codecs.py            writes the page
python scripts/make_codecs.py --check    exits with 1 if the page is not what the code says
"""

import importlib
import inspect
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.registry import codec_class, codec_names
from kakeya_jax.eval.listing import list_codecs, list_recipes
from kakeya_jax.recipe import Recipe

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "codecs.md"
HEAD_DIMS = (64, 128)
COMMON = inspect.getdoc(CodecConfig) or ""
_INTRODUCTION = """\
Made from the code by `python scripts/make_codecs.py`. Bits per value are counted from the arrays of a block at the
default options and head dimensions 64 and 128: *payload* is indices, *all-in* everything that is stored with them
([what is counted](accounting.md)). `kakeya codecs --json` and `kakeya recipes --json` print the same numbers. What each
recipe does to a model's predictions is in [the results](results.md)."""


def main() -> int:
    """Writes or checks the page."""
    page = build()
    if "--check" not in sys.argv:
        PAGE.write_text(page)
        return 0
    return int(not PAGE.is_file() or PAGE.read_text() != page)


def build() -> str:
    """The whole page."""
    measured = {dim: {each["name"]: each for each in list_codecs(dim)} for dim in HEAD_DIMS}
    parts = [
        "# All codecs",
        _INTRODUCTION,
        _overview(measured),
        "## Options of every codec",
        "\n".join(_options(COMMON, CodecConfig)),
    ]
    for name in codec_names():
        parts += _codec(name, measured)
    return "\n\n".join(parts) + "\n"


def _overview(measured: dict[int, dict[str, dict[str, Any]]]) -> str:
    rows = ["| codec | keys are coded | payload | all-in, D = 64 | all-in, D = 128 | bytes a vector, D = 128 |"]
    rows.append("|---|---|--:|--:|--:|--:|")
    for name in codec_names():
        small, large = (measured[dim][name] for dim in HEAD_DIMS)
        bits = [
            large["bits_per_value"]["payload"],
            small["bits_per_value"]["all_in"],
            large["bits_per_value"]["all_in"],
        ]
        keys = "before RoPE" if large["keys"].startswith("pre") else "after RoPE"
        cells = [f"[`{name}`](#{name})", keys, *map(_number, bits), _number(large["bytes_per_vector"])]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _codec(name: str, measured: dict[int, dict[str, dict[str, Any]]]) -> Iterator[str]:
    config = codec_class(name)
    yield f"## {name}"
    yield f"Source: {_linked(config.source)}."
    yield _markdown(_method(config))
    yield _markdown((inspect.getdoc(config) or "").split("\nAttributes:")[0].strip())
    options = _options(inspect.getdoc(config) or "", config)
    if options:
        yield "\n".join(options)
    rows = [*_named(name)]
    note = measured[HEAD_DIMS[-1]][name]["note"]
    if rows:
        table = ["| recipe | payload | all-in, D = 128 | setting |", "|---|--:|--:|---|", *rows]
        yield "\n".join(table)
    if note:
        yield f"Bits here are {note.removeprefix('bits ')}."


def _method(config: type[CodecConfig]) -> str:
    """The docstring of the module that holds the method."""
    module = config.__module__.removesuffix("_config")
    return inspect.cleandoc(importlib.import_module(module).__doc__ or "")


def _named(name: str) -> Iterator[str]:
    """Named recipes that use this method alone, those of the ladder left out (docs/results.md has them)."""
    for each in list_recipes(HEAD_DIMS[-1]):
        recipe = Recipe.named(each["name"])
        if {rule.codec.name for rule in recipe.rules} == {name} and not each["name"].startswith("ladder"):
            bits = " | ".join(_number(each["bits_per_value"][kind]) for kind in ("payload", "all_in"))
            yield f"| `{each['name']}` | {bits} | `{recipe.to_text()}` |"


def _options(doc: str, config: type[CodecConfig]) -> list[str]:
    """The options that a docstring lists, with their defaults, as a Markdown list."""
    _, found, listed = doc.partition("\nAttributes:\n")
    if not found:
        return []
    entries = re.split(r"\n    (?=\w+: )", "\n" + listed.split("\n\n")[0])[1:]
    lines = []
    for entry in entries:
        option, _, text = entry.partition(": ")
        default = config.__dataclass_fields__[option].default
        words = " ".join(text.split())
        lines.append(f"* `{option}` ({_spelled(default)}): {_markdown(words)}")
    return lines


def _spelled(value: Any) -> str:
    """A default as recipes write it."""
    return f"`{'none' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _markdown(text: str) -> str:
    """A docstring's text as Markdown: its literal blocks fenced, its literals in single backquotes."""
    text = re.sub(r"::(\n\n(?: {4}.*\n?|\n)+)", r":\1", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"(?m)^((?: {4}.+\n?)+)", _fenced, text)


def _fenced(found: re.Match[str]) -> str:
    code = inspect.cleandoc(found[1])
    return f"```text\n{code}\n```\n"


def _linked(source: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source).replace(
        "docs/klt.md", "[klt](klt.md)"
    )


def _number(value: float) -> str:
    return f"{value:g}" if value == round(value, 3) else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())

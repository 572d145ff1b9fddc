"""What there is: the codecs with their options, and the named recipes, each with its bits."""

import dataclasses
import inspect
from typing import Any

import rich.box
from rich.table import Table

from kakeya_jax.accounting import cache_report
from kakeya_jax.cache import CacheShape
from kakeya_jax.codecs.registry import codec_class, codec_names
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe, Rule
from kakeya_jax.recipe_text import format_codec

_CONTEXT = 16384
_KV_HEADS = 2
_LAYERS, _INNER_LAYER = 64, 20
"""A depth, and a layer of it that no recipe of the library names as a boundary layer."""


def list_codecs(head_dim: int = 128) -> list[dict[str, Any]]:
    """Name, summary, options with defaults, RoPE class, and bits per value of every codec at its defaults."""
    return [_describe_codec(name, head_dim) for name in codec_names()]


def _describe_codec(name: str, head_dim: int) -> dict[str, Any]:
    cls = codec_class(name)
    recipe = Recipe(rules=(Rule(codec=cls()),))
    return {
        "name": name,
        "summary": _first_sentence(inspect.getdoc(cls) or ""),
        "keys": f"{cls.rope}-RoPE",
        "options": {field.name: field.default for field in dataclasses.fields(cls)},
        "bits_per_value": _bits(recipe, head_dim),
    }


def list_recipes(head_dim: int = 128) -> list[dict[str, Any]]:
    """Name, text form, exact window, bits per value, and whether it must be calibrated, of every named recipe."""
    return [
        {
            "name": name,
            "text": recipe.to_text(),
            "sinks": recipe.sinks,
            "recent": recipe.recent,
            "boundary": recipe.boundary,
            "needs_calibration": recipe.needs_calibration,
            "bits_per_value": _bits(recipe, head_dim),
        }
        for name, recipe in ((name, Recipe.named(name)) for name in Recipe.names())
    ]


def codec_table(codecs: list[dict[str, Any]], head_dim: int) -> Table:
    """The codecs for a terminal."""
    table = _table(f"codecs at their defaults, head_dim {head_dim}")
    for title in ("codec", "bits/value\npayload", "bits/value\nall-in", "keys", "what it is", "options"):
        table.add_column(title, justify="right" if "bits" in title else "left")
    for codec in codecs:
        config = codec_class(codec["name"])
        defaults = format_codec(config()).removeprefix(codec["name"]).strip("()")
        options = ", ".join(f"{name}={_option(value)}" for name, value in codec["options"].items())
        table.add_row(
            codec["name"],
            *_bits_cells(codec["bits_per_value"]),
            codec["keys"],
            codec["summary"],
            options or defaults,
        )
    return table


def recipe_table(recipes: list[dict[str, Any]], head_dim: int) -> Table:
    """The recipes for a terminal."""
    table = _table(
        f"named recipes, head_dim {head_dim}; bits of an inner layer of {_KV_HEADS} key/value heads at {_CONTEXT:,} "
        "tokens, without the exact window"
    )
    for title in ("recipe", "bits/value\npayload", "bits/value\nall-in", "exact\nwindow", "calibrated", "spelled out"):
        table.add_column(title, justify="right" if "bits" in title else "left")
    for recipe in recipes:
        window = f"{recipe['sinks']}+{recipe['recent']}"
        calibrated = "yes" if recipe["needs_calibration"] else ""
        table.add_row(recipe["name"], *_bits_cells(recipe["bits_per_value"]), window, calibrated, recipe["text"])
    return table


def _bits(recipe: Recipe, head_dim: int) -> dict[str, float]:
    """Bits of an inner layer alone, at a length where something is coded; calibrated tables by their shapes."""
    plan = recipe.plan(_LAYERS)[_INNER_LAYER]
    rules = (
        Rule(stream="key", codec=plan.key.codec, rope=plan.key.rope),
        Rule(stream="value", codec=plan.value.codec),
    )
    inner = dataclasses.replace(recipe, rules=rules, boundary=0)
    shape = CacheShape(num_layers=1, num_kv_heads=_KV_HEADS, head_dim=head_dim)
    report = cache_report(shape, inner, max_length=_CONTEXT, tables=neutral_tables(shape, inner))
    return {"payload": report.payload_bits_per_value, "all_in": report.all_in_bits_per_value}


def _bits_cells(bits: dict[str, float]) -> tuple[str, str]:
    return f"{bits['payload']:.3f}", f"{bits['all_in']:.3f}"


def _table(title: str) -> Table:
    return Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)


def _option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("``", "")

"""What there is: the codecs with their options, and the named recipes, each with its bits."""

import dataclasses
import inspect
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.accounting import cache_report
from kakeya_jax.cache import CacheShape
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.codecs.registry import codec_class, codec_names
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe, Rule

_CONTEXT = 16384
_KV_HEADS = 2
_LAYERS, _INNER_LAYER = 64, 20
"""A depth, and a layer of it that no recipe of the library names as a boundary layer."""

_IN_MEMORY = (
    "bits of the cache in memory, a byte for each channel that calibration keeps (here all of them); session files are "
    "entropy-coded, and the option bits is the rate per value that calibration aims at there"
)


def list_codecs(head_dim: int = 128) -> list[dict[str, Any]]:
    """Every codec at its defaults, as plain data.

    Name, summary, source, RoPE class, options with defaults (those of its own first), bits per value, and bytes per
    vector: a vector is the key or the value of one token and one head. ``note`` says what the bits leave out.
    """
    return [_describe_codec(name, head_dim) for name in codec_names()]


def _describe_codec(name: str, head_dim: int) -> dict[str, Any]:
    cls = codec_class(name)
    recipe = Recipe(rules=(Rule(codec=cls()),))
    bits = _bits(recipe, head_dim)
    common, own = _options(CodecConfig), _options(cls)
    return {
        "name": name,
        "summary": _first_sentence(inspect.getdoc(cls) or ""),
        "source": cls.source,
        "keys": f"{cls.rope}-RoPE",
        "options": {option: own[option] for option in sorted(own, key=lambda option: option in common)},
        "bits_per_value": bits,
        "bytes_per_vector": bits["all_in"] * head_dim / 8,
        "note": memory_note(recipe),
    }


def list_recipes(head_dim: int = 128) -> list[dict[str, Any]]:
    """Every named recipe, as plain data.

    Name, text form, exact window, bits per value, whether it must be calibrated, and what the bits leave out.
    """
    return [
        {
            "name": name,
            "text": recipe.to_text(),
            "sinks": recipe.sinks,
            "recent": recipe.recent,
            "boundary": recipe.boundary,
            "needs_calibration": recipe.needs_calibration,
            "bits_per_value": _bits(recipe, head_dim),
            "note": memory_note(recipe),
        }
        for name, recipe in ((name, Recipe.named(name)) for name in Recipe.names())
    ]


def codec_table(codecs: list[dict[str, Any]], head_dim: int) -> Group:
    """The codecs for a terminal: what they store and where they come from, then what they are and their options."""
    table = _table(f"codecs at their defaults, head_dim {head_dim}")
    for title in ("codec", "bits/value\npayload", "bits/value\nall-in", "bytes/\nvector", "keys", "source"):
        table.add_column(title, justify="right" if "/" in title else "left", no_wrap=title in ("codec", "keys"))
    for codec in codecs:
        table.add_row(
            codec["name"],
            *_bits_cells(codec),
            f"{codec['bytes_per_vector']:.2f}",
            codec["keys"],
            codec["source"],
        )
    lines = ["A vector is the key or the value of one token and one head; bytes are all-in.", *_footnotes(codecs)]
    return Group(table, *_dim(lines), Text(), _option_table(codecs), *_dim([_common_options(codecs)]))


def _option_table(codecs: list[dict[str, Any]]) -> Table:
    """What each codec is, and the options that only it has or that have a default of its own."""
    common = _options(CodecConfig)
    table = _table("")
    table.add_column("codec", no_wrap=True)
    table.add_column("what it is, and its own options")
    for codec in codecs:
        own = {option: value for option, value in codec["options"].items() if common.get(option, ...) != value}
        what = Text(codec["summary"])
        if own:
            what.append(f"\n{_spell(own)}", style="dim")
        table.add_row(codec["name"], what)
    return table


def _common_options(codecs: list[dict[str, Any]]) -> str:
    joint = [codec["name"] for codec in codecs if codec_class(codec["name"]).joint_heads]
    return f"All codecs also take {_spell(_options(CodecConfig))}; {' and '.join(joint)} take block_size alone."


def recipe_table(recipes: list[dict[str, Any]], head_dim: int) -> Group:
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
        table.add_row(recipe["name"], *_bits_cells(recipe), window, calibrated, recipe["text"])
    return Group(table, *_dim(_footnotes(recipes)))


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


def memory_note(recipe: Recipe) -> str:
    """What the bits in memory do not say of an entropy-coded recipe; empty for all others."""
    entropy_coded = any(isinstance(rule.codec, KltStorageConfig) for rule in recipe.rules)
    return _IN_MEMORY if entropy_coded else ""


def _footnotes(rows: list[dict[str, Any]]) -> list[str]:
    """Each note once, with the names that it belongs to."""
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    return [f"* {', '.join(row['name'] for row in rows if row['note'] == note)}: {note}." for note in notes]


def _bits_cells(row: dict[str, Any]) -> tuple[str, str]:
    """Payload and all-in bits, marked where there is a note."""
    mark = "*" if row["note"] else ""
    bits = row["bits_per_value"]
    return f"{mark}{bits['payload']:.3f}", f"{mark}{bits['all_in']:.3f}"


def _dim(lines: list[str]) -> list[Text]:
    return [Text(line, style="dim") for line in lines]


def _table(title: str) -> Table:
    return Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)


def _options(config: type[CodecConfig]) -> dict[str, Any]:
    """Options with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(config)}


def _spell(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_option(value)}" for name, value in options.items())


def _option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("``", "")

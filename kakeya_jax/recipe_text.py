"""The compact text form of recipes, for command lines and tables.

Items are separated by commas outside brackets::

    recipe   = item {"," item}
    item     = NAME                                      a named recipe (first item) or a codec for both streams
             | stream [layers] ["@" ("pre" | "post")] "=" codec
             | ("sinks" | "recent" | "boundary") "=" INTEGER
             | "boundary_codec" "=" codec
    stream   = "key" | "value" | "both"
    layers   = "[" part {"," part} "]"                   part: INDEX, FIRST ":" LAST (both included), or a share
                                                         of the depth between 0 and 1, such as 0.25
    codec    = NAME ["(" option "=" value {"," option "=" value} ")"]

After a named recipe, rules come before its own, of which those that can no longer apply are dropped, and settings
replace its own.
"""

import dataclasses
import pathlib
import re
from typing import Any, cast

from kakeya_jax.close_names import did_you_mean
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.registry import codec_config, codec_names
from kakeya_jax.named_recipes import is_recipe_name, named_recipe, recipe_names
from kakeya_jax.recipe import DEFAULT_RECENT, DEFAULT_SINKS, Recipe, Rule, is_shadowed
from kakeya_jax.typing import RopeClass

_RULE = re.compile(r"(key|value|both)(?:\[([^\]]*)\])?(?:@(\w+))?")
_CODEC = re.compile(r"([A-Za-z][\w-]*)(?:\((.*)\))?", re.DOTALL)
_SHARE = re.compile(r"0?\.\d+")
_SETTINGS = ("sinks", "recent", "boundary")


def parse_recipe(text: str) -> Recipe:
    """Reads a named recipe, a path to a recipe's JSON file, or the compact form.

    Raises:
        ValueError: what is wrong, in one line.
    """
    text = text.strip()
    if text.endswith(".json"):
        path = pathlib.Path(text)
        if not path.is_file():
            raise ValueError(f"recipe file {text} does not exist")
        return Recipe.from_json(path.read_text())
    if not text:
        raise ValueError(f"empty recipe; name one ({', '.join(recipe_names())}) or write key=CODEC,value=CODEC")
    if is_recipe_name(text):
        return named_recipe(text)
    base: Recipe | None = None
    rules: list[Rule] = []
    settings: dict[str, Any] = {}
    for index, item in enumerate(_split(text)):
        name, equals, value = _partition(item)
        if not equals:
            if index == 0 and is_recipe_name(name):
                base = named_recipe(name)
            else:
                _check_known(item)
                rules.append(Rule(codec=_parse_codec(item)))
        elif name in settings:
            raise ValueError(f"recipe {text!r} gives {name} twice; give it once")
        elif name in _SETTINGS:
            settings[name] = _parse_integer(name, value)
        elif name == "boundary_codec":
            settings[name] = _parse_codec(value)
        else:
            rules.append(_parse_rule(name, value))
    if base is not None:
        kept = tuple(rule for rule in base.rules if not is_shadowed(rule, rules))
        if not kept and dataclasses.replace(base, rules=()) == Recipe(rules=()):
            raise ValueError(
                f"recipe {text!r}: the rules after {base.name!r} replace all of it; leave out "
                f"either {base.name!r} or them"
            )
        changed = dataclasses.replace(base, rules=tuple(rules) + kept, **settings)
        return changed if changed == base else dataclasses.replace(changed, name=text)
    if not rules:
        raise ValueError(f"recipe {text!r} names no codec; write for example key=CODEC,value=CODEC")
    return Recipe(rules=tuple(rules), **settings)


def format_recipe(recipe: Recipe) -> str:
    """The compact form with only what differs from the defaults."""
    items = [format_rule(rule) for rule in recipe.rules]
    defaults = Recipe(rules=())
    if not recipe.rules:
        items.append("both=identity")
    if recipe.boundary:
        items.append(f"boundary={recipe.boundary}")
    if recipe.boundary_codec != defaults.boundary_codec:
        items.append(f"boundary_codec={format_codec(recipe.boundary_codec)}")
    if recipe.sinks != DEFAULT_SINKS:
        items.append(f"sinks={recipe.sinks}")
    if recipe.recent != DEFAULT_RECENT:
        items.append(f"recent={recipe.recent}")
    return ",".join(items)


def format_rule(rule: Rule) -> str:
    """``stream[layers]@rope=codec``; layers and rope only if the rule names them."""
    layers = "" if rule.layers is None else f"[{','.join(str(index) for index in rule.layers)}]"
    rope = "" if rule.rope is None else f"@{rule.rope}"
    return f"{rule.stream}{layers}{rope}={format_codec(rule.codec)}"


def format_codec(codec: CodecConfig) -> str:
    """``name(option=value,...)`` with the options that differ from the codec's defaults."""
    options = []
    for field in dataclasses.fields(codec):
        value = getattr(codec, field.name)
        if value != field.default:
            options.append(f"{field.name}={str(value).lower() if isinstance(value, bool | None) else value}")
    return codec.name + (f"({','.join(options)})" if options else "")


def _check_known(item: str) -> None:
    """Refuses a bare word that is neither codec nor recipe: it may have been meant as either."""
    if _CODEC.fullmatch(item) and "(" not in item and item not in codec_names():
        meant = did_you_mean(item, (*recipe_names(), *codec_names()))
        raise ValueError(
            f"unknown recipe or codec {item!r};{meant} codecs: {', '.join(codec_names())}; "
            "`kakeya recipes` lists the recipes"
        )


def _parse_rule(target: str, codec: str) -> Rule:
    match = _RULE.fullmatch(target)
    if match is None:
        raise ValueError(
            f"{target!r} in recipe is not understood; "
            "write key=, value=, both=, key[0,-1]=, sinks=, recent= or boundary="
        )
    stream, layers, rope = match.groups()
    return Rule(
        stream=stream,
        layers=None if layers is None else _parse_layers(layers),
        rope=cast(RopeClass | None, rope),  # checked by Rule
        codec=_parse_codec(codec),
    )


def _parse_layers(text: str) -> tuple[int | float, ...]:
    layers: list[int | float] = []
    for part in text.split(","):
        if _SHARE.fullmatch(part.strip()):
            layers.append(float(part))
            continue
        first, colon, last = part.partition(":")
        low = _parse_integer("layer", first)
        high = _parse_integer("layer", last) if colon else low
        if high < low:
            raise ValueError(f"layers {part!r} run backwards; write FIRST:LAST with both included")
        layers.extend(range(low, high + 1))
    return tuple(layers)


def _parse_codec(text: str) -> CodecConfig:
    match = _CODEC.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a codec; write NAME or NAME(option=value,...)")
    name, body = match.groups()
    if name not in codec_names() and body is None and is_recipe_name(name):
        raise ValueError(f"{name!r} is a recipe, not a codec; a named recipe comes first and alone: {name},recent=1")
    options = {}
    for item in _split(body) if body else ():
        option, equals, value = _partition(item)
        if not equals:
            raise ValueError(f"option {item!r} of codec {name!r} has no value; write {item}=VALUE")
        if option in options:
            raise ValueError(f"codec {name!r} is given option {option} twice; give it once")
        options[option] = _parse_value(value)
    return codec_config(name, **options)


def _parse_value(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parse_integer(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{what}={text!r} in recipe must be a whole number") from None


def _partition(item: str) -> tuple[str, bool, str]:
    """``name``, whether an ``=`` outside brackets follows, and the rest."""
    depth = 0
    for index, char in enumerate(item):
        depth += (char in "([") - (char in ")]")
        if char == "=" and depth == 0:
            return item[:index].strip(), True, item[index + 1 :].strip()
    return item.strip(), False, ""


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth < 0:
            raise ValueError(f"unbalanced brackets in recipe {text!r}")
        if char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    if depth:
        raise ValueError(f"unbalanced brackets in recipe {text!r}")
    parts.append(text[start:].strip())
    if "" in parts:
        raise ValueError(f"recipe {text!r} has an empty item between commas")
    return parts

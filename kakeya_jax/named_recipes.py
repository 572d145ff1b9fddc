"""The library's recipes by name: every method at its usual settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

from kakeya_jax.close_names import did_you_mean
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.klt_recipes import klt_recipe, klt_recipes
from kakeya_jax.ladder_recipes import ladder_recipes
from kakeya_jax.recipe import Recipe, Rule


def recipe_names() -> tuple[str, ...]:
    """The names that are listed, plain baselines first; see ``is_recipe_name``."""
    return tuple(_RECIPES)


def is_recipe_name(name: str) -> bool:
    """Whether ``named_recipe`` knows a name: those of ``recipe_names``, and ``klt-N`` for every budget ``N``."""
    return name in _RECIPES or klt_recipe(name) is not None


def named_recipe(name: str) -> Recipe:
    """The recipe of that name, labelled with it.

    Raises:
        ValueError: no such recipe; the message lists those that exist. Or ``klt-N`` with a budget out of range.
    """
    make = _RECIPES.get(name) or klt_recipe(name)
    if make is None:
        raise ValueError(f"unknown recipe {name!r};{did_you_mean(name, _RECIPES)} named recipes: {', '.join(_RECIPES)}")
    return dataclasses.replace(make(), name=name)


def _both(codec: str, **options: object) -> Callable[[], Recipe]:
    return lambda: Recipe(rules=(Rule(codec=codec_config(codec, **options)),))


def _split(key: tuple[str, dict], value: tuple[str, dict], **settings: Any) -> Callable[[], Recipe]:
    return lambda: Recipe(
        rules=(
            Rule(stream="key", codec=codec_config(key[0], **key[1])),
            Rule(stream="value", codec=codec_config(value[0], **value[1])),
        ),
        **settings,
    )


_BESICOVITCH = (
    "besicovitch",
    {"direction_bits": 3, "magnitude_bits": 4, "subtract_mean": True, "block_size": 512},
)
_KAKEYA_4 = codec_config("kakeya", bits=4, mix_heads=True)

_RECIPES: dict[str, Callable[[], Recipe]] = {
    "identity": _both("identity"),
    "fp8": _both("fp8"),
    "int8": _both("int8"),
    "int4": _both("int4"),
    "int4-affine": _both("int4", affine=True),
    "kivi-2": _both("kivi", bits=2),
    "kivi-4": _both("kivi", bits=4),
    "turboquant-2": _both("turboquant", bits=2),
    "turboquant-3": _both("turboquant", bits=3),
    "turboquant-4": _both("turboquant", bits=4),
    "turboquant-k3v2": _split(("turboquant", {"bits": 3}), ("turboquant", {"bits": 2})),
    "turboquant-k4v3": _split(("turboquant", {"bits": 4}), ("turboquant", {"bits": 3})),
    "turboquant-qjl-4": _split(("turboquant", {"bits": 4, "qjl": True}), ("turboquant", {"bits": 4})),
    # Published as v1.4 "Pareto": K exact PCA at full rank, 4 bits; V Besicovitch d3 m4 with block mean; boundary layers
    # exact PCA, 4 bits. Heads share a skeleton, as published.
    "kakeya-pareto": _split(
        ("kakeya", {"bits": 4, "mix_heads": True}), _BESICOVITCH, boundary=1, boundary_codec=_KAKEYA_4
    ),
    # The ladder's ratio end: K randomised SVD of rank D/2, 3 bits, outliers beyond 2; V and boundary layers as above.
    "kakeya-ratio": _split(
        ("kakeya", {"bits": 3, "pca": "randomized", "outlier_threshold": 2.0, "mix_heads": True}),
        _BESICOVITCH,
        boundary=1,
        boundary_codec=_KAKEYA_4,
    ),
    "besicovitch": _both(_BESICOVITCH[0], **_BESICOVITCH[1]),
}
_RECIPES |= klt_recipes() | ladder_recipes()

"""What the names of the first family mean, spelled out: no default can change under them unnoticed."""

import dataclasses
from typing import Any

import pytest

from kakeya_jax.accounting import cache_report
from kakeya_jax.cache import CacheShape
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.kakeya_config import KakeyaConfig
from kakeya_jax.recipe import Recipe

Settings = dict[str, Any]

PLAIN: Settings = {"mix_heads": False, "static_mean": False, "whiten": False}
IDENTITY: Settings = {"name": "identity", "block_size": 128, **PLAIN}
FP8: Settings = {"name": "fp8", "block_size": 128, "scale": "vector", **PLAIN}
INT8: Settings = {"name": "int8", "block_size": 128, "group_size": None, **PLAIN}
INT4: Settings = {"name": "int4", "block_size": 128, "group_size": 32, "affine": False, **PLAIN}
KIVI: Settings = {"name": "kivi", "block_size": 128, "group_size": 32, "axis": None, **PLAIN}
TURBOQUANT: Settings = {
    "name": "turboquant",
    "block_size": 128,
    "norm_correction": True,
    "qjl": False,
    "rotation": "haar",
    **PLAIN,
}
BESICOVITCH: Settings = {
    "name": "besicovitch",
    "block_size": 512,
    "group_size": 2,
    "direction_bits": 3,
    "magnitude": "quantized",
    "magnitude_bits": 4,
    "subtract_mean": True,
    **PLAIN,
}
KAKEYA: Settings = {
    "name": "kakeya",
    "block_size": 512,
    "bits": 4,
    "pca": "exact",
    "rank": None,
    "variance_ratio": 1.0,
    "skeleton_dtype": "float16",
    "basis": "block",
    "kmeans_centers": 16,
    "centroids": "gaussian",
    "outlier_threshold": None,
    "residual": "lloyd",
    "weights": "none",
    "exact_rows": 0,
    **PLAIN,
    "mix_heads": True,
}
SKETCHED: Settings = KAKEYA | {
    "bits": 3,
    "pca": "randomized",
    "oversample": 8,
    "power_iterations": 2,
    "outlier_threshold": 2.0,
}

MEANT: dict[str, tuple[Settings, Settings]] = {
    "identity": (IDENTITY, IDENTITY),
    "fp8": (FP8, FP8),
    "int8": (INT8, INT8),
    "int4": (INT4, INT4),
    "kivi-2": (KIVI | {"bits": 2}, KIVI | {"bits": 2}),
    "kivi-4": (KIVI | {"bits": 4}, KIVI | {"bits": 4}),
    "turboquant-2": (TURBOQUANT | {"bits": 2}, TURBOQUANT | {"bits": 2}),
    "turboquant-3": (TURBOQUANT | {"bits": 3}, TURBOQUANT | {"bits": 3}),
    "turboquant-4": (TURBOQUANT | {"bits": 4}, TURBOQUANT | {"bits": 4}),
    "kakeya-pareto": (KAKEYA, BESICOVITCH),
    "kakeya-ratio": (SKETCHED, BESICOVITCH),
    "besicovitch": (BESICOVITCH, BESICOVITCH),
}
"""Settings of K and of V in the inner layers."""

BOUNDARY = {"kakeya-pareto": KAKEYA, "kakeya-ratio": KAKEYA}
"""Settings of both streams in the first and the last layer, where they differ from the inner ones."""


@pytest.mark.parametrize("name", MEANT)
def test_names_mean_these_settings(name: str) -> None:
    first, second, third, last = Recipe.named(name).plan(4)
    for layer in (second, third):
        for stream, meant in zip((layer.key, layer.value), MEANT[name], strict=True):
            assert_settings(stream.codec, meant)
    for layer in (first, last):
        for stream, meant in zip((layer.key, layer.value), MEANT[name], strict=True):
            assert_settings(stream.codec, BOUNDARY.get(name, meant))


def assert_settings(codec: CodecConfig, meant: Settings) -> None:
    settings = {"name": codec.name, **dataclasses.asdict(codec)}
    assert {option: settings[option] for option in meant} == meant


@pytest.mark.parametrize(("name", "rank"), [("kakeya-pareto", 128), ("kakeya-ratio", 64)])
def test_rank_of_the_skeleton(name: str, rank: int) -> None:
    boundary, inner = Recipe.named(name).plan(4)[:2]
    assert isinstance(inner.key.codec, KakeyaConfig)
    assert isinstance(boundary.key.codec, KakeyaConfig)
    assert inner.key.codec.rank_of(128) == rank
    assert boundary.key.codec.rank_of(128) == 128
    assert inner.key.rope == boundary.key.rope == "pre"


@pytest.mark.parametrize("text", ["int8", "key=int8,value=int4", *MEANT])
def test_four_sinks_and_at_least_128_recent_tokens_stay_exact_by_default(text: str) -> None:
    recipe = Recipe.parse(text)
    assert (recipe.sinks, recipe.recent) == (4, 128)
    report = cache_report(CacheShape(num_layers=4, num_kv_heads=2, head_dim=64), recipe, max_length=2048)
    assert report.sinks == 4
    assert report.exact_tokens[0] == 128


def test_a_recipe_of_json_without_a_window_keeps_the_default_one() -> None:
    recipe = Recipe.from_json('{"rules": [{"codec": {"name": "int8"}}]}')
    assert (recipe.sinks, recipe.recent) == (4, 128)

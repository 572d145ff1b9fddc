"""The published ladder of KakeyaTurbo recipes, and what it was compared with, for models of any depth.

Published for one model of 28 layers with two key/value heads; carried over by these rules.

* *Boundary layers.* Four of them are the first two and the last two. Six add the layers at a quarter and at half of
  the depth (7 and 14 of 28), eight also those at an eighth and at 0.54 (3 and 15). In a model of few layers several of
  these fall together, and one of four layers or fewer is all boundary. Boundary layers ("conservative") take 4 bits,
  Gaussian levels, no outliers and no shared basis; where V is Besicovitch, their V is exact PCA, as it was run.
* *Blocks.* Heads share their blocks: 512 tokens are the published 1024 rows.
* *Ranks* are the published share of the head dimension, one half unless the recipe says otherwise.
* *Whitening* (Q-preconditioning) of all keys that had it, boundary layers included; layers whose keys are too large for
  it are left out by the tables themselves, where the publication named layer 0.
* *Calibrated levels* are pooled over all layers that are not boundary layers, as published; ``riemannian`` scales and
  shared bases are fitted for each layer on calibration text, where the publication fitted them to the text it measured.

Not carried over are two faults of the published runs: residuals are decoded with the norm that was stored for them (not
with norm one, which made every recipe without whitening fail), and Besicovitch magnitudes use all of their levels.
"""

from collections.abc import Callable
from typing import Any, Literal

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.besicovitch import BesicovitchConfig
from kakeya_jax.codecs.identity import IdentityConfig
from kakeya_jax.codecs.integer import Int8Config
from kakeya_jax.codecs.kakeya import KakeyaConfig
from kakeya_jax.codecs.riemannian import RiemannianConfig
from kakeya_jax.codecs.turboquant import TurboQuantConfig
from kakeya_jax.recipe import Recipe, Rule

Layers = tuple[int | float, ...]

BOUNDARY_4: Layers = (0, 1, -2, -1)
BOUNDARY_6: Layers = (0, 1, 0.25, 0.5, -2, -1)
BOUNDARY_8: Layers = (0, 1, 0.125, 0.25, 0.5, 0.54, -2, -1)

_BLOCK_SIZE = 512


def ladder_recipes() -> dict[str, Callable[[], Recipe]]:
    """All of them by name, in the order of their publication."""
    return {
        name: lambda rules=rules: Recipe(rules=rules)
        for rows in (_values_ladder(), _bits_ladder(), _key_variants(), _milestones(), _turboquant_plus())
        for name, rules in rows.items()
    }


_Rules = dict[str, tuple[Rule, ...]]


def _values_ladder() -> _Rules:
    """V: two bits; whitening, calibrated levels and better values one after the other."""
    key, calibrated_key = _randomized(2, whiten=True), _randomized(2, whiten=True, centroids="pooled")
    value, calibrated_value = _randomized(2), _randomized(2, centroids="pooled")
    boundary_key, boundary_value = _randomized(4, whiten=True), _randomized(4)
    return {
        "ladder-v0": _rules(_randomized(2), value),
        "ladder-v1": _rules(key, value, BOUNDARY_4, boundary_key, boundary_value),
        "ladder-v2": _rules(calibrated_key, value, BOUNDARY_4, boundary_key, boundary_value),
        "ladder-v3": _rules(calibrated_key, calibrated_value, BOUNDARY_6, boundary_key, boundary_value),
        "ladder-v4": _rules(calibrated_key, _besicovitch(), BOUNDARY_6, boundary_key, _exact(4)),
    }


def _bits_ladder() -> _Rules:
    """B: three bits; R: exact outliers; C: variants of B3."""

    def outliers(bits: int, threshold: float | None, layers: Layers = BOUNDARY_6, **options: Any) -> tuple[Rule, ...]:
        key = _randomized(bits, whiten=True, centroids="pooled", outlier_threshold=threshold, **options)
        return _rules(key, _besicovitch(), layers, _randomized(4, whiten=True, **options), _exact(4))

    calibrated_key = _randomized(3, whiten=True, centroids="pooled")
    boundary_key = _randomized(4, whiten=True)
    return {
        "ladder-b0": _rules(_randomized(3), _randomized(3)),
        "ladder-b1": _rules(calibrated_key, _randomized(3), BOUNDARY_6, boundary_key, _randomized(4)),
        "ladder-b2": outliers(3, None),
        "ladder-b3": outliers(3, 2.0),
        "ladder-r1": outliers(2, 2.0),
        "ladder-r2": outliers(2, 1.5),
        "ladder-r3": outliers(3, 1.5),  # also published as C1, with other figures
        "ladder-c2": outliers(3, 2.0, rank=0.75),
        "ladder-c3": outliers(4, 2.0),
        "ladder-c4": outliers(3, 2.0, BOUNDARY_8),
    }


def _key_variants() -> _Rules:
    """F: Riemannian keys; P: exact PCA of keys with cheaper values.

    Whether the keys of P were whitened is not written anywhere. They must have been: without it they would have been
    decoded wrongly, and their published losses are those of whitened ones.
    """

    def riemannian(direction_bits: int) -> tuple[Rule, ...]:
        key = RiemannianConfig(
            direction_bits=direction_bits,
            magnitude_bits=4,
            scale_mode="pct99",
            centroids="pooled",
            block_size=_BLOCK_SIZE,
            mix_heads=True,
            whiten=True,
        )
        return _rules(key, _exact(2, basis="shared"), BOUNDARY_6, _exact(4, whiten=True), _exact(4))

    def exact(key: CodecConfig, value: CodecConfig) -> tuple[Rule, ...]:
        return _rules(key, value, BOUNDARY_4, _exact(4, whiten=True), _exact(4))

    calibrated = _exact(3, whiten=True, centroids="pooled")
    with_outliers = _exact(3, whiten=True, centroids="pooled", outlier_threshold=2.0)
    return {
        "ladder-f1": riemannian(6),
        "ladder-f2": riemannian(5),
        "ladder-p6": exact(_exact(4, whiten=True), _besicovitch(direction_bits=2, magnitude_bits=3)),
        "ladder-p8": exact(_exact(4, whiten=True), _besicovitch(direction_bits=2, magnitude="float16")),
        "ladder-p10": exact(calibrated, _besicovitch(direction_bits=2, magnitude_bits=3)),
        "ladder-p11": exact(with_outliers, _besicovitch(direction_bits=2, magnitude_bits=4)),
    }


def _milestones() -> _Rules:
    """The recipes that had names of their own."""
    shared = {"basis": "shared", "centroids": "pooled"}
    ppl_key = _randomized(3, whiten=True, centroids="pooled", outlier_threshold=2.0, block_size=256)
    ppl_value = _randomized(2, block_size=256, **shared)
    key, boundary_key = _exact(4, whiten=True), _exact(4, whiten=True)
    return {
        "kakeya-v1.3-ppl": _rules(ppl_key, ppl_value, BOUNDARY_6, IdentityConfig(), IdentityConfig()),
        "kakeya-v1.4-pareto": _rules(key, _besicovitch(), BOUNDARY_4, boundary_key, _exact(4)),
        "kakeya-sprint-3.5": _rules(key, _exact(2, **shared), BOUNDARY_4, boundary_key, _exact(4)),
    }


def _turboquant_plus() -> _Rules:
    """turboquant_plus as shipped for llama.cpp: q8_0 keys, rotated Lloyd-Max values, q8_0 values in boundary layers."""
    q8_0 = Int8Config(group_size=32)
    return {
        f"turboquant-plus-turbo{bits}": _rules(
            q8_0, TurboQuantConfig(bits=bits, rotation="hadamard"), BOUNDARY_4, q8_0, q8_0
        )
        for bits in (3, 2)
    }


def _rules(
    key: CodecConfig,
    value: CodecConfig,
    boundary: Layers | None = None,
    boundary_key: CodecConfig | None = None,
    boundary_value: CodecConfig | None = None,
) -> tuple[Rule, ...]:
    inner = (Rule(stream="key", codec=key), Rule(stream="value", codec=value))
    if boundary is None or boundary_key is None or boundary_value is None:
        return inner
    return (
        Rule(stream="key", layers=boundary, codec=boundary_key),
        Rule(stream="value", layers=boundary, codec=boundary_value),
        *inner,
    )


def _kakeya(bits: int, pca: Literal["exact", "randomized"], options: dict[str, Any]) -> KakeyaConfig:
    return KakeyaConfig(**({"bits": bits, "pca": pca, "mix_heads": True, "block_size": _BLOCK_SIZE} | options))


def _exact(bits: int, **options: Any) -> KakeyaConfig:
    return _kakeya(bits, "exact", options)


def _randomized(bits: int, **options: Any) -> KakeyaConfig:
    return _kakeya(bits, "randomized", options)


def _besicovitch(direction_bits: int = 3, **options: Any) -> BesicovitchConfig:
    return BesicovitchConfig(direction_bits=direction_bits, block_size=_BLOCK_SIZE, mix_heads=True, **options)

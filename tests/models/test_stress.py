"""Stressed models compute what they were made from, and their keys and values have outlier channels."""

import chex
import jax
import numpy as np
import pytest
from golden_models import expected, golden, run

from kakeya_jax.models.stress import FACTORS, PAIRS, stress, stressed_name

ARCHITECTURES = ("llama-llama3", "llama-bias", "qwen2", "qwen3")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_stay_bit_for_bit_at_powers_of_two(name):
    model, params = golden(name)
    tokens, _ = expected(name)
    plain = run(model, params, tokens).logits
    for factor in FACTORS:
        np.testing.assert_array_equal(run(model, stress(params, model.config, factor), tokens).logits, plain)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_stay_to_rounding_at_other_factors(name):
    model, params = golden(name)
    tokens, _ = expected(name)
    plain = run(model, params, tokens).logits
    # Measured: at most 7.3e-6 on logits of magnitude 7.
    np.testing.assert_allclose(run(model, stress(params, model.config, 5.3), tokens).logits, plain, atol=3e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pairs_of_keys_and_channels_of_values_are_scaled(name):
    model, params = golden(name)
    tokens, _ = expected(name)
    plain, scaled = (_streams(model, each, tokens) for each in (params, stress(params, model.config, 32.0)))
    half = model.config.head_dim // 2
    for before, after in zip(plain, scaled, strict=True):  # the first layer's and the second's
        grown = {stream: np.round(np.median(after[stream] / before[stream], axis=(0, 1)), 4) for stream in before}
        assert set(np.unique(grown["key"])) == set(np.unique(grown["value"])) == {1.0, 32.0}
        np.testing.assert_array_equal(np.sum(grown["key"] > 1, axis=1), 2 * PAIRS)
        np.testing.assert_array_equal(grown["key"][:, :half], grown["key"][:, half:])
        np.testing.assert_array_equal(np.sum(grown["value"] > 1, axis=1), PAIRS)
        groups = grown["query"].reshape(len(grown["key"]), -1, 2 * half)
        np.testing.assert_array_equal(groups, np.broadcast_to(np.round(1 / grown["key"], 4)[:, None], groups.shape))


def test_seed_decides_which_and_parameters_are_not_changed():
    model, params = golden("qwen2")
    held = jax.tree.map(np.array, params)
    first, again, other = (stress(params, model.config, 8.0, seed=seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(params, held)
    chex.assert_trees_all_equal(first, again)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), first, other)))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, params)
    chex.assert_trees_all_equal(stress(params, model.config, 1.0), params)


def test_names_and_factors():
    assert stressed_name("house", 32.0) == "house+stress32"
    assert stressed_name("house", 2.5) == "house+stress2.5"
    model, params = golden("llama")
    for factor in (0.0, -8.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"must be a positive number, for example 32"):
            stress(params, model.config, factor)


def _streams(model, params, tokens):
    _, sown = model.apply({"params": params}, tokens, mutable=["intermediates"])
    layers = [sown["intermediates"][f"layers_{index}"]["attention"] for index in range(model.config.num_layers)]
    return [{name: np.asarray(layer[name][0]) for name in ("query", "key", "value")} for layer in layers]

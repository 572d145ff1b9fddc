"""Contexts, planted facts and greedy trajectories, on a model so small that every cell takes seconds."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.eval.ablations import context, retrieval, trajectory
from kakeya_jax.eval.ablations.ablation import Setup
from kakeya_jax.eval.ablations.context import ContextCell, contexts_of, ends_of_passages
from kakeya_jax.eval.ablations.retrieval import ANSWER, CUE, DEPTHS, ControlCell, RetrievalCell, end_only, planted
from kakeya_jax.eval.ablations.trajectory import TrajectoryCell, agreed_steps, distinct_share
from kakeya_jax.models.generate import generate
from kakeya_jax.recipe import Recipe

TIGHT = "(block_size=16),sinks=0,recent=1"


def test_contexts_are_those_that_a_model_reaches(tiny_setup: Setup):
    config = tiny_setup.model.config
    assert contexts_of(dataclasses.replace(config, max_position_embeddings=5000)) == (1024, 2048, 4096)
    assert contexts_of(dataclasses.replace(config, max_position_embeddings=256)) == (1024,)


def test_a_context_of_its_own_is_measured_and_its_end_scored(tiny_setup: Setup):
    setup = dataclasses.replace(tiny_setup, passages=1)
    row = ContextCell(label="", text="both=int8" + TIGHT, context=96).measure(setup)
    assert (row["context"], row["tokens_scored"]) == (96, 95)
    assert row["kl_mean"] > 0
    long = ContextCell(label="", text="both=int8" + TIGHT, context=4096)
    assert long.sizes(tiny_setup) == {"context": 4096, "warmup": 4096 - 1 - 512}


def test_every_context_ends_with_the_same_tokens(tiny_setup: Setup):
    config = dataclasses.replace(tiny_setup.model.config, max_position_embeddings=2048)
    tokens = np.arange(3 * 2048)
    setup = dataclasses.replace(tiny_setup, model=types.SimpleNamespace(config=config), tokens=tokens, passages=None)
    short, long = ends_of_passages(setup, 1024), ends_of_passages(setup, 2048)
    assert (short.shape, long.shape) == ((3, 1024), (3, 2048))
    np.testing.assert_array_equal(short, long[:, -1024:])
    np.testing.assert_array_equal(long, tokens.reshape(3, 2048))
    with pytest.raises(ValueError, match="passages=4 must be between 1 and 3, as many of context=2048"):
        ends_of_passages(dataclasses.replace(setup, passages=4), 1024)


def test_growth_is_told_for_each_recipe_but_the_exact_one():
    kl = {
        "int4, 1024 tokens": 0.5,
        "int4, 2048 tokens": 1.0,
        "identity, 1024 tokens": 1.0,
        "identity, 2048 tokens": 3.0,
    }
    rows = {label: {"kl_mean": each, "context": int(label.split()[1])} for label, each in kl.items()}
    assert context.ABLATION.findings(rows) == ["int4: KL at 2048 tokens is 2.00 times that at 1024."]


def test_facts_are_planted_at_every_depth_and_begun_again_at_the_end(tiny_setup: Setup):
    length, texts = CUE + ANSWER, planted(tiny_setup.tokens, 192, 2)
    assert texts.shape == (len(DEPTHS), 2, 192)
    facts = texts[0, :, -length:]
    assert not np.array_equal(facts[0], facts[1])
    for at_depth, depth in zip(texts, DEPTHS, strict=True):
        start = round(depth * 192)
        np.testing.assert_array_equal(at_depth[:, start : start + length], facts)
        np.testing.assert_array_equal(at_depth[:, -length:], facts)
        changed = np.mean(at_depth != texts[-1])
        assert changed == 0 if depth == DEPTHS[-1] else changed > 0


def test_what_is_lost_of_a_fact_is_what_the_codec_loses(tiny_setup: Setup):
    setup = dataclasses.replace(tiny_setup, context=256)
    exact = RetrievalCell(label="", text="both=identity" + TIGHT).measure(setup)
    coarse = RetrievalCell(label="", text="both=turboquant(block_size=16,bits=2),sinks=0,recent=1").measure(setup)
    assert [each["depth"] for each in coarse["depths"]] == list(DEPTHS)
    assert exact["tokens_scored"] == len(DEPTHS) * 2 * ANSWER
    assert exact["all"]["dense_recall"] == coarse["all"]["dense_recall"]
    assert max(abs(each["nats_lost"]) for each in exact["depths"]) < 1e-2
    assert max(abs(each["nats_lost"]) for each in coarse["depths"]) > 10 * max(
        abs(each["nats_lost"]) for each in exact["depths"]
    )


def test_the_control_is_the_dense_model_without_the_fact(tiny_setup: Setup):
    setup = dataclasses.replace(tiny_setup, context=256)
    length = CUE + ANSWER
    plain, with_fact = end_only(setup.tokens, 256, 2), planted(setup.tokens, 256, 2)
    np.testing.assert_array_equal(plain[:, -length:], with_fact[0, :, -length:])
    np.testing.assert_array_equal(plain[:, :-length], np.stack([setup.tokens[:232], setup.tokens[1344:1576]]))
    row = ControlCell(label="").measure(setup)
    assert row["tokens_scored"] == len(DEPTHS) * 2 * ANSWER
    assert len({each["nats_lost"] for each in row["depths"]}) == len(DEPTHS)  # the fact is read, depth by depth
    rows = {"dense, no fact planted": row, "other": row}
    found = retrieval.ABLATION.findings(rows)
    assert "and guesses" in found[0]
    assert "That is no recall" in found[1]  # random weights
    recalls = {**row, "all": {**row["all"], "dense_recall": 0.9}}
    assert len(retrieval.ABLATION.findings({"dense, no fact planted": recalls})) == 2


def test_facts_inside_the_exact_window_are_refused(tiny_setup: Setup):
    with pytest.raises(ValueError, match="context=192 is too short: the recipe keeps up to 128 recent tokens exact"):
        RetrievalCell(label="", text="both=int8(block_size=16),sinks=0,recent=113").measure(tiny_setup)


def test_agreed_steps():
    first = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(agreed_steps(first, np.array([[1, 2, 3], [0, 2, 3], [1, 2, 0]])), [3, 0, 2])


def test_distinct_share():
    assert distinct_share(np.array([[7, 7, 7, 7], [1, 2, 3, 4]])) == (0.25 + 1) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [dense_recipe(64), Recipe.parse("both=turboquant(block_size=16,bits=1),sinks=0,recent=1")]
)
def test_what_is_said_when_fed_is_what_is_generated_until_the_first_difference(tiny_setup: Setup, recipe: Recipe):
    """So what ``choices`` draws is what ``generate`` draws, with the same random numbers."""
    model, params, steps = tiny_setup.model, tiny_setup.params, 24
    prompts = np.asarray(tiny_setup.tokens[:80]).reshape(2, 40)

    def cache(recipe: Recipe) -> CompressedCache:
        return CompressedCache.init(model.config, recipe, batch_size=2, max_length=64, dtype=jnp.float32)

    def said(recipe: Recipe, temperature: float) -> np.ndarray:
        options = {"max_new_tokens": steps, "temperature": temperature, "seed": trajectory.SEED}
        return np.asarray(generate(model, params, prompts, cache=cache(recipe), **options).tokens)

    texts = np.stack([said(dense_recipe(64), 0.0), said(dense_recipe(64), 1.0)])
    taken = np.asarray(jax.jit(functools.partial(trajectory.choices, model))(params, cache(recipe), prompts, texts))
    for index, temperature in enumerate((0.0, 1.0)):
        until = agreed_steps(texts[index], said(recipe, temperature))
        np.testing.assert_array_equal(agreed_steps(texts[index], taken[index, index]), until)
        assert ((until == steps) == (recipe == dense_recipe(64))).all()
    assert np.mean(taken[0, 1] == texts[0]) < 0.5  # a draw is not the likeliest token


@pytest.mark.slow
def test_trajectories(tiny_setup: Setup, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trajectory, "STEPS", 32)
    good = TrajectoryCell(label="", text="both=int8" + TIGHT).measure(tiny_setup)
    bad = TrajectoryCell(label="", text="both=turboquant(block_size=16,bits=1),sinks=0,recent=1").measure(tiny_setup)
    assert good["tokens_scored"] == 2 * 32
    assert good["agreed_steps"] == np.mean(good["agreed_steps_of"])
    assert good["fed_agreement"] > 0.9 > bad["fed_agreement"]
    assert bad["agreed_steps"] < 32
    assert good["drawn"]["fed_agreement"] > 0.9 > bad["drawn"]["fed_agreement"]
    assert good["drawn"]["agreed_steps"] > bad["drawn"]["agreed_steps"]
    assert good["distinct_share"].items() - bad["distinct_share"].items() == {("own", good["distinct_share"]["own"])}
    assert trajectory.ABLATION.columns[2].text({"distinct_share": {"dense": 0.5, "own": 0.125}}) == "50.0 / 12.5"
    with pytest.raises(ValueError, match="context=32 must be more than the 32 tokens"):
        TrajectoryCell(label="", text="both=int8").measure(dataclasses.replace(tiny_setup, context=32))

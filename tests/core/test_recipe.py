from typing import Any

import pytest

from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.recipe import Recipe, Rule

TEXTS = [
    "int8",
    "turboquant-3,recent=1,sinks=0",
    "key=kakeya(bits=4),value=besicovitch(direction_bits=3,magnitude_bits=4),boundary=2,sinks=4,recent=64",
    "key[0,-1]=identity,key@pre=turboquant(bits=3),value=int4(affine=true)",
    "key[1:3]=int8,both=kivi(bits=4),boundary_codec=int8,boundary=1",
    "key=kakeya(outlier_threshold=1.5,rank=none,pca=randomized)",
    "key[0,0.25,.5,-1]=int8,value[0.125]=int4,both=kivi",
]


@pytest.mark.parametrize("text", [*TEXTS, *Recipe.names()])
def test_text_and_json_round_trip(text: str):
    recipe = Recipe.parse(text)
    assert Recipe.parse(recipe.to_text()) == recipe
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.name == recipe.name
    assert hash(again) == hash(recipe)
    recipe.plan(8)


def test_first_matching_rule_decides_and_boundary_comes_first():
    recipe = Recipe.parse("key[2]=int8,key=int4,value=turboquant(bits=2),boundary=1")
    plan = recipe.plan(4)
    names = [(layer.key.codec.name, layer.value.codec.name) for layer in plan]
    assert names == [
        ("identity", "identity"),
        ("int4", "turboquant"),
        ("int8", "turboquant"),
        ("identity", "identity"),
    ]


@pytest.mark.parametrize(
    ("num_layers", "expected"), [(1, {0}), (2, {0, 1}), (8, {0, 2, 4, 7}), (28, {0, 7, 14, 27}), (30, {0, 7, 15, 29})]
)
def test_shares_of_the_depth_name_layers_of_any_model(num_layers: int, expected: set[int]):
    plan = Recipe.parse("key[0,0.25,.5,-1]=int8").plan(num_layers)
    assert {index for index, layer in enumerate(plan) if layer.key.codec.name == "int8"} == expected


def test_layers_are_whole_numbers_or_shares():
    wrong: tuple[Any, ...] = ((1.5,), (1.0,), (0.0,), (True,), ("1",))
    for layers in wrong:
        with pytest.raises(ValueError, match="must be a whole number, or a share of the depth"):
            Rule(codec=codec_config("int8"), layers=layers)


def test_recipes_that_need_calibration_say_so():
    for text in ("int8", "turboquant-3", "kakeya-pareto", "key=kakeya,boundary_codec=kakeya(centroids=calibrated)"):
        assert not Recipe.parse(text).needs_calibration
    for text in (
        "key=kakeya(basis=shared)",
        "int8,boundary=1,boundary_codec=kakeya(centroids=calibrated)",
        "value=int4(static_mean=true)",
        "key@pre=int4(whiten=true)",
        "key=riemannian",
    ):
        assert Recipe.parse(text).needs_calibration


def test_what_no_rule_matches_stays_dense():
    plan = Recipe.parse("key=int8").plan(2)
    assert [layer.value.codec.name for layer in plan] == ["identity", "identity"]


def test_rope_class_comes_from_the_rule_then_from_the_codec():
    plan = Recipe.parse("key[0]@post=kakeya,key[1]@pre=turboquant,key=kakeya").plan(3)
    assert [layer.key.rope for layer in plan] == ["post", "pre", "pre"]
    assert all(layer.value.rope is None for layer in plan)


def test_page_fits_both_codecs():
    plan = Recipe.parse("key=kakeya(block_size=96),value=int8(block_size=64)").plan(1)
    assert plan[0].page == 192


def test_changing_a_named_recipe_labels_it_with_the_whole_text():
    assert Recipe.parse("turboquant-3,recent=1").name == "turboquant-3,recent=1"
    assert Recipe.parse("turboquant-3").name == "turboquant-3"
    assert Recipe.parse("turboquant-3,recent=1") == Recipe(
        rules=(Rule(codec=codec_config("turboquant", bits=3)),), recent=1
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty recipe"),
        ("turbo", "unknown codec 'turbo'; known codecs: identity"),
        ("key=nope", "unknown codec 'nope'"),
        (
            "key=int4(width=3)",
            "codec 'int4' has no option width; its options: block_size, mix_heads, static_mean",
        ),
        ("key=int4(", "unbalanced brackets"),
        ("key=int4,,value=int8", "empty item"),
        ("keys=int4", "'keys' in recipe is not understood"),
        ("key=int4,recent=x", "recent='x' in recipe must be a whole number"),
        ("key=int4,recent=0", "recent=0 must be at least 1"),
        ("key=int4,sinks=-1", "sinks=-1 must be at least 0"),
        ("key[3:1]=int4", "run backwards"),
        ("key[1.5]=int4", "layer='1.5' in recipe must be a whole number"),
        ("key[.0]=int4", "layer 0.0 in recipe must be a whole number, or a share of the depth such as 0.25"),
        ("key@mid=int4", "rope='mid' must be 'pre' or 'post'"),
        ("value@pre=int4", "no meaning for values"),
        ("key=turboquant(bits)", "option 'bits' of codec 'turboquant' has no value"),
        ("key=turboquant(bits=99)", "bits=99"),
        ("sinks=4", "names no codec"),
        ("missing.json", "does not exist"),
        ("key=turboquant-3", "is a recipe, not a codec"),
        ("key=int4(group_size=0)", "group_size=0"),
        ("key=int8(block_size=1.5)", "block_size"),
        ("key=turboquant(bits=true)", "bits"),
        ("key=int4(affine=3)", "affine"),
    ],
)
def test_bad_text_gives_one_clear_line(text: str, message: str):
    with pytest.raises(ValueError, match=r"(?s).") as error:
        Recipe.parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_json_gives_one_clear_line():
    for text, message in [
        ("{", "not valid JSON"),
        ('{"rulez": []}', "unknown key rulez"),
        ('{"rules": [{"codec": {"bits": 3}}]}', "no 'name'"),
        ("[]", "must be a JSON object"),
        ('{"rules": [{}]}', "rule has no 'codec'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe.from_json(text)


def test_a_layer_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="names layer 8, but the model has layers 0 to 7"):
        Recipe.parse("key[8]=int8").plan(8)

import json
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("klt-3.5", "both=klt(bits=3.5)"),
        ("klt-0.25", "both=klt(bits=0.25)"),
        ("klt-pairs-2.125", "both=klt(bits=2.125,heads_together=2)"),
        ("klt-quality-8", "both=klt(bits=8.0,form=quality)"),
        ("klt-trellis-2.25", "both=klt(bits=2.25,form=quality,trellis=true)"),
        ("klt-trellis-pairs-2.25", "both=klt(bits=2.25,form=quality,heads_together=2,trellis=true)"),
        ("klt-storage-1.5", "both=klt-storage(bits=1.5)"),
        ("klt-3.5,recent=1,sinks=0", "both=klt(bits=3.5),recent=1,sinks=0"),
    ],
)
def test_klt_has_a_name_for_every_budget(name: str, text: str):
    assert name not in Recipe.names()
    assert Recipe.parse(name) == Recipe.parse(text)
    assert str(Recipe.parse(name)) == name


@pytest.mark.parametrize("name", ["klt-0.1", "klt-9", "klt-pairs-100", "klt-storage-0.001"])
def test_budgets_out_of_range_are_refused_by_the_codec(name: str):
    with pytest.raises(ValueError, match="bits="):
        Recipe.parse(name)


@pytest.mark.parametrize(
    "name", ["klt-", "klt-x", "klt-2-", "klt-2.", "klt--2", "klt-1e0", "klt-inf", "klt-02", "klt-2.50"]
)
def test_other_names_that_look_like_a_budget_are_unknown(name: str):
    with pytest.raises(ValueError, match="klt-"):
        Recipe.parse(name)


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
        ("nothing-like-it", "unknown recipe or codec 'nothing-like-it'; codecs: identity"),
        ("ktl-2", "unknown recipe or codec 'ktl-2'; did you mean 'klt-2'? codecs: identity"),
        ("turbo-3,recent=1", "unknown recipe or codec 'turbo-3'; did you mean 'turboquant-3'?"),
        ("turbo", "unknown recipe or codec 'turbo'; did you mean 'turboquant'?"),
        ("turboquent(bits=3)", "unknown codec 'turboquent'; did you mean 'turboquant'?"),
        ("key=nope", "unknown codec 'nope'; known codecs: identity"),
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
        ("int8,int4", "the rules after 'int8' replace all of it; leave out either 'int8' or them"),
        ("turboquant-3,key=int8,value=int4", "replace all of it"),
        ("kivi,both=int4", "rule both=int4 in recipe never applies"),
        ("both=int8,both=int4", "rule both=int4 in recipe never applies"),
        ("key=int8,value=int4,both[0]=kivi(bits=4)", "rule both[0]=kivi(bits=4) in recipe never applies"),
        ("key[0,1]=int8,both[-1]=int8,key[1,-1]=int4", "rule key[1,-1]=int4 in recipe never applies"),
        ("int8,sinks=4,sinks=5", "gives sinks twice"),
        ("int8,boundary=1,boundary_codec=int8,boundary_codec=int4", "gives boundary_codec twice"),
        ("int4(group_size=16,group_size=32)", "is given option group_size twice"),
    ],
)
def test_bad_text_gives_one_clear_line(text: str, message: str):
    with pytest.raises(ValueError, match=r"(?s).") as error:
        Recipe.parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_file_says_where_it_comes_from():
    recipe = Recipe.named("kakeya-pareto")
    text = recipe.to_json({"predicted_kl": 0.5, "model": "m"})
    assert json.loads(text)["about"] == {"predicted_kl": 0.5, "model": "m"}
    assert Recipe.from_json(text) == recipe
    assert "about" not in json.loads(recipe.to_json())


def test_bad_json_gives_one_clear_line():
    for text, message in [
        ("{", "not valid JSON"),
        ('{"rulez": []}', "unknown key rulez"),
        ('{"rules": [{"codec": {"bits": 3}}]}', "no 'name'"),
        ("[]", "must be a JSON object"),
        ('{"rules": [{}]}', "rule has no 'codec'"),
        ('{"rules": 3}', "rules in recipe must be a JSON list, not 3"),
        ('{"rules": null}', "rules in recipe must be a JSON list, not None"),
        ('{"rules": {"codec": "int8"}}', "rules in recipe must be a JSON list"),
        ('{"rules": [3]}', "rule must be a JSON object, got int"),
        ('{"rules": [{"codec": "int8"}]}', "codec in recipe must be a JSON object such as .*, not 'int8'"),
        ('{"rules": [{"codec": null}]}', "codec in recipe must be a JSON object"),
        ('{"rules": [{"codec": {"name": ["int8"]}}]}', r"name=\['int8'\] of a codec in recipe must be text"),
        ('{"rules": [{"codec": {"name": "int8"}, "layers": 3}]}', "layers of a rule must be a JSON list, not 3"),
        ('{"rules": [{"codec": {"name": "int8"}, "layers": []}]}', "never applies"),
        ('{"rules": [{"codec": {"name": "int8"}, "layers": [[1]]}]}', r"layer \[1\] in recipe"),
        ('{"rules": [{"codec": {"name": "int8"}, "layers": ["a"]}]}', "layer 'a' in recipe"),
        ('{"rules": [{"codec": {"name": "int8"}, "stream": ["key"]}]}', r"stream=\['key'\]"),
        ('{"rules": [{"codec": {"name": "int8"}, "rope": {}}]}', "rope={} must be"),
        ('{"rules": [{"codec": {"name": "int4", "group_size": null}}]}', "group_size=None must be a whole number"),
        ('{"sinks": "4"}', "sinks='4' in recipe must be a whole number"),
        ('{"recent": null}', "recent=None in recipe must be a whole number"),
        ('{"boundary": 1.5}', "boundary=1.5 in recipe must be a whole number"),
        ('{"boundary_codec": "int8"}', "codec in recipe must be a JSON object"),
        ('{"name": 3}', "name=3 in recipe must be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe.from_json(text)


@pytest.mark.parametrize(
    "text",
    ["key=int8,both=int4", "key[0]=int8,key=int4,value=kivi", "both[0,0.5]=int8,both[-1]=int4,both=kivi"],
)
def test_rules_that_overlap_in_part_are_kept(text: str):
    recipe = Recipe.parse(text)
    codecs = {stream.codec for layer in recipe.plan(4) for _, stream in layer.streams()}
    assert codecs == {rule.codec for rule in recipe.rules}


def test_rules_after_a_named_recipe_drop_those_they_replace():
    changed = Recipe.parse("kakeya-pareto,key=int8")
    assert [(rule.stream, rule.codec.name) for rule in changed.rules] == [("key", "int8"), ("value", "besicovitch")]
    assert changed.boundary == 1
    # A boundary that is not the default is something left of the recipe, so all its rules may be replaced.
    assert [rule.codec.name for rule in Recipe.parse("kakeya-pareto,int8").rules] == ["int8"]
    assert [rule.codec.name for rule in Recipe.parse("int8,key=int4").rules] == ["int4", "int8"]


def test_a_boundary_may_be_the_whole_model_but_not_more():
    for boundary in (4, 8):
        plan = Recipe.parse(f"int8,boundary={boundary},boundary_codec=int4").plan(8)
        assert {layer.key.codec.name for layer in plan} == {"int4"}
    with pytest.raises(ValueError, match="boundary=9 in recipe must be at most 8, the model's layers"):
        Recipe.parse("int8,boundary=9").plan(8)


def test_a_layer_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="names layer 8, but the model has layers 0 to 7"):
        Recipe.parse("key[8]=int8").plan(8)

from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.calibration.codec_tables import check_recipes
from kakeya_jax.eval.demo import bundled_calibration
from kakeya_jax.eval.listing import list_codecs, list_recipes
from kakeya_jax.eval.run_calibrate import expand_fitted
from kakeya_jax.eval.run_eval import expand_recipes
from kakeya_jax.recipe import Recipe


def test_recipes_that_need_calibration_are_listed_with_their_bits() -> None:
    listed = {recipe["name"]: recipe for recipe in list_recipes(128)}
    assert set(listed) == set(Recipe.names())
    assert listed["ladder-b3"]["needs_calibration"]
    assert not listed["kakeya-ratio"]["needs_calibration"]
    assert all(recipe["bits_per_value"]["all_in"] >= recipe["bits_per_value"]["payload"] for recipe in listed.values())


def test_bits_are_those_of_an_inner_layer() -> None:
    """Boundary layers are named by rules in the ladder and by a number elsewhere; neither counts."""
    listed = {recipe["name"]: recipe["bits_per_value"]["payload"] for recipe in list_recipes(128)}
    assert listed["turboquant-plus-turbo3"] == (8 + 3) / 2
    assert listed["kakeya-v1.3-ppl"] == (1.5 + 1.0) / 2  # 3 and 2 bits of half the rank
    assert listed["kakeya-v1.4-pareto"] == listed["kakeya-pareto"] == (4 + 3.5) / 2


def test_codecs_that_need_tables_are_listed_at_their_defaults() -> None:
    listed = {codec["name"]: codec for codec in list_codecs(64)}
    assert listed["riemannian"]["bits_per_value"]["payload"] == 4
    assert listed["riemannian"]["options"]["scale_mode"] == "rms"


def test_all_leaves_out_what_needs_calibration() -> None:
    without = expand_recipes(("all",))
    assert {"int8", "kakeya-pareto", "ladder-v0"} < set(without)
    assert not any(Recipe.named(name).needs_calibration for name in without)
    calibrated = expand_recipes(("int4", "all", "int4"), load_calibration(bundled_calibration()))
    assert calibrated[0] == "int4"
    assert calibrated.count("int4") == 1
    assert {"klt-2", "klt-storage-1", *without} <= set(calibrated)
    assert "ladder-b3" not in calibrated  # its levels are fitted to it alone, which the bundled calibration was not
    assert expand_recipes(("ladder-b3", "int8")) == ("ladder-b3", "int8")


def test_all_recipes_that_need_tables_are_calibrated_together() -> None:
    found = [recipe.name for recipe in expand_fitted(("ladder-v2", "all"))]
    assert found == [
        "ladder-v2",
        *(name for name in Recipe.names() if Recipe.named(name).needs_calibration and name != "ladder-v2"),
    ]
    check_recipes([Recipe.named(name) for name in found], num_layers=28, length=2048)

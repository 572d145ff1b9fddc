import io
import re
from typing import Any

import pytest
from rich.console import Console

from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.calibration.codec_tables import check_recipes
from kakeya_jax.codecs.registry import codec_class, codec_names
from kakeya_jax.eval.demo import bundled_calibration
from kakeya_jax.eval.listing import codec_table, list_codecs, list_recipes, recipe_table
from kakeya_jax.eval.run_calibrate import expand_fitted
from kakeya_jax.eval.run_eval import expand_recipes
from kakeya_jax.recipe import Recipe

COMMON_OPTIONS = ("block_size", "mix_heads", "static_mean", "whiten", "max_condition")


def lines_of(shown: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


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


def test_every_codec_names_its_source() -> None:
    sources = {codec["name"]: codec["source"] for codec in list_codecs(128)}
    assert set(sources) == set(codec_names())
    assert all("source" in vars(codec_class(name)) for name in sources)  # its own, not one it inherits
    assert "arXiv:2402.02750" in sources["kivi"]
    assert "arXiv:2504.19874" in sources["turboquant"]
    assert sources["kakeya"] == sources["besicovitch"] == sources["riemannian"] == "KakeyaTurbo"
    assert "Conway and Sloane" in sources["lattice"]
    assert sources["klt"] == "this library, docs/klt.md"
    for source in sources.values():
        assert all(re.fullmatch(r"\d{4}\.\d{4,5}", number) for number in re.findall(r"arXiv:([\d.]+\d)", source))


@pytest.mark.parametrize(("head_dim", "int8", "kivi"), [(128, 128 + 2, 48), (64, 64 + 2, 24)])
def test_bytes_are_those_of_one_token_and_head(head_dim: int, int8: int, kivi: int) -> None:
    """int8: a byte for each channel and a float16 scale; kivi: 2 bits for each and 32 bits for every 32."""
    listed = {codec["name"]: codec["bytes_per_vector"] for codec in list_codecs(head_dim)}
    assert listed["identity"] == 2 * head_dim
    assert listed["int8"] == int8
    assert listed["kivi"] == kivi


def test_own_options_come_first() -> None:
    for codec in list_codecs(128):
        options = list(codec["options"])
        assert tuple(options[-5:]) == COMMON_OPTIONS
        assert not set(options[:-5]) & set(COMMON_OPTIONS)


def test_only_entropy_coded_recipes_have_a_note() -> None:
    noted = [codec["name"] for codec in list_codecs(128) if codec["note"]]
    assert noted == ["klt-storage"]
    recipes = [recipe["name"] for recipe in list_recipes(128) if recipe["note"]]
    assert recipes == [name for name in Recipe.names() if name.startswith("klt-storage-")]


@pytest.mark.parametrize("width", [100, 160])
def test_codec_table_fits_a_terminal(width: int) -> None:
    codecs = list_codecs(128)
    lines = lines_of(codec_table(codecs, 128), width)
    text = " ".join(" ".join(lines).split())
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= 80
    assert "…" not in text
    for codec in codecs:
        assert " ".join(codec["source"].split()[:2]) in text
    assert text.count("static_mean=false") == 1  # options of all codecs are shown once
    assert text.count("block_size=") == 2  # for all, and where kakeya differs
    assert "block_size=512" in text
    assert "klt and klt-storage take block_size alone" in text
    assert "*8.000 *8.062" in text
    assert text.count("session files are entropy-coded") == 1


def test_recipe_table_says_once_what_its_marked_bits_are() -> None:
    text = " ".join(" ".join(lines_of(recipe_table(list_recipes(128), 128), 160)).split())
    marked = sum(name.startswith("klt-storage-") for name in Recipe.names())
    assert text.count("*8.000 *8.062") == marked
    assert text.count("session files are entropy-coded") == 1

"""Every ablation is well-formed for models of any depth: labels, baselines, recipes, findings, and equal windows."""

import dataclasses

import pytest

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import RecipeCell
from kakeya_jax.eval.ablations.registry import ABLATIONS, find_ablation
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import DEMO, find_folder
from kakeya_jax.recipe import Recipe

NAMES = (
    *("kakeya-skeleton", "kakeya-grid", "kakeya-rank", "block-size", "heads", "whitening", "kmeans", "centroids"),
    *("outliers", "boundary", "streams", "depth", "stages", "besicovitch-rotation", "besicovitch-levels"),
    *("besicovitch-trilemma", "speed-ceiling", "selectors", "int4-gates", "rotated-values"),
    *("context", "retrieval", "trajectory"),
)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_folder(find_folder(DEMO))


def test_all_are_there_and_others_are_refused():
    assert tuple(ABLATIONS) == NAMES
    with pytest.raises(ValueError, match=r"unknown ablation 'skeleton'; did you mean 'kakeya-skeleton'\? ablations: "):
        find_ablation("skeleton")


@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=lambda ablation: ablation.name)
@pytest.mark.parametrize("layers", [4, 8, 28])
def test_cells(ablation: Ablation, layers: int, config: ModelConfig):
    config = dataclasses.replace(config, num_layers=layers)
    cells = ablation.cells(config, ablation.usual.context)
    labels = [cell.label for cell in cells]
    requests = [str(cell.request()) for cell in cells]
    assert len(set(labels)) == len(labels) >= 3
    assert len(set(requests)) == len(requests)  # no two rows measure the same
    assert ablation.baseline is None or ablation.baseline in labels
    assert ablation.question.endswith("?")
    assert ablation.claims
    for cell in cells:
        if cell.recipe is not None:
            cell.recipe.plan(layers)
            assert Recipe.parse(cell.recipe.to_text()) == cell.recipe


@pytest.mark.parametrize("name", ["kakeya-grid", "block-size", "heads", "whitening", "streams", "besicovitch-trilemma"])
def test_rows_keep_the_same_tokens_exact(name: str, config: ModelConfig):
    pages = {
        (plan.page, plan.sinks, plan.recent)
        for cell in find_ablation(name).cells(config, 4096)
        if isinstance(cell, RecipeCell)
        for plan in cell.recipe.plan(config.num_layers)
    }
    assert len(pages) == 1


def test_depth_doubles_and_covers_every_layer(config: ModelConfig):
    cells = find_ablation("depth").cells(config, 2048)
    coded = {cell.label: _coded_layers(cell.recipe, config.num_layers) for cell in cells}
    assert coded["first 4"] == [0, 1, 2, 3]
    assert coded["last 2"] == [6, 7]
    assert coded["all layers"] == list(range(8))
    singles = sorted(layers[0] for layers in coded.values() if len(layers) == 1)
    assert singles == list(range(8))


def _coded_layers(recipe: Recipe | None, layers: int) -> list[int]:
    assert recipe is not None
    return [layer for layer, plan in enumerate(recipe.plan(layers)) if plan.key.codec.name != "identity"]

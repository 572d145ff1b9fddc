"""Are levels fitted to the model better than Gaussian ones?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    return recipe_cells(
        {
            f"{bits} bits, {levels}": f"both=kakeya(bits={bits},centroids={levels})"
            for bits in (2, 3, 4)
            for levels in ("gaussian", "calibrated", "pooled")
        }
    )


ABLATION = Ablation(
    name="centroids",
    question="Are quantiser levels fitted to training text better than the Lloyd-Max levels of a Gaussian?",
    claims=(
        "KakeyaTurbo: calibrated tables (V2, V3) improve on Gaussian ones; they were fitted to the evaluated passages, "
        "to residuals from which k-means had not been subtracted",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="3 bits, gaussian",
    notes=(
        "K and V, exact PCA at full rank, blocks of 512 tokens. calibrated: a table for each layer and stream; pooled: "
        "one for all layers; both fitted to training text, to what the quantiser sees.",
    ),
)

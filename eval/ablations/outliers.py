"""Which outlier threshold is worth its bits?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_THRESHOLDS = {2: (2.0, 1.5), 3: (3.0, 2.5, 2.0, 1.5)}


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    recipes = {}
    for bits, thresholds in _THRESHOLDS.items():
        recipes[f"{bits} bits, none"] = f"both=kakeya(bits={bits})"
        for threshold in thresholds:
            recipes[f"{bits} bits, beyond {threshold:g}"] = f"both=kakeya(bits={bits},outlier_threshold={threshold})"
    recipes["4 bits, none"] = "both=kakeya(bits=4)"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="outliers",
    question="Are exact outliers beyond a threshold a better use of bits than one more bit for everything?",
    claims=("KakeyaTurbo: B2 to B3 (threshold 2.0) and R3 (1.5) are its largest steps in quality",),
    cells=_cells,
    columns=COLUMNS,
    baseline="3 bits, none",
    notes=(
        "K and V, exact PCA at full rank, blocks of 512 tokens. A vector has a fixed number of outlier slots, which "
        "are counted whether used or not.",
    ),
)

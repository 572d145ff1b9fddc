"""Do the k-means directions pay for themselves?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_CENTRES = (0, 1, 4, 16, 64)


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    recipes = {
        f"{count or 'no'} centre{'s' * (count != 1)}": f"both=kakeya(bits=3,kmeans_centers={count})"
        for count in _CENTRES
    }
    recipes["16 centres, not refined"] = "both=kakeya(bits=3,kmeans_iterations=0)"
    recipes["no centres, 4 bits"] = "both=kakeya(bits=4,kmeans_centers=0)"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="kmeans",
    question="Do the k-means directions of a block pay for the bytes of centres, ids and projections?",
    claims=("KakeyaTurbo: 16 spherical k-means centres for every block of every recipe",),
    cells=_cells,
    columns=COLUMNS,
    baseline="no centres",
    notes=(
        "K and V, exact PCA at full rank, blocks of 512 tokens, 3 bits; the last row has 4, at about the bytes of 16 "
        "centres. Without centres all coefficients of a vector are rotated and quantised, and only its norm is stored.",
    ),
)

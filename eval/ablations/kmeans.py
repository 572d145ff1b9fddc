"""Do the k-means directions pay for themselves?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_CENTRES = (0, 1, 4, 16, 64)


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    recipes = {f"{count or 'no'} centres": f"both=kakeya(bits=3,kmeans_centers={count})" for count in _CENTRES}
    recipes["16 centres, not refined"] = "both=kakeya(bits=3,kmeans_iterations=0)"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="kmeans",
    question="Do the k-means directions of a block pay for the bytes of centres, ids and projections?",
    claims=("KakeyaTurbo: 16 spherical k-means centres for every block of every recipe",),
    cells=_cells,
    columns=COLUMNS,
    baseline="no centres",
    notes=(
        "K and V, exact PCA at full rank, 3 bits, blocks of 512 tokens. Without centres all coefficients of a vector "
        "are rotated and quantised; nothing else is stored for it than its norm.",
    ),
)

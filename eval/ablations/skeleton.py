"""Does the skeleton's method, precision or sharing matter?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_METHODS = {"exact": "exact", "randomised": "randomized", "frequent directions": "frequent_directions"}


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    recipes = {
        f"{label}, {dtype}": f"both=kakeya(bits=3,rank=0.5,pca={pca},skeleton_dtype={dtype})"
        for label, pca in _METHODS.items()
        for dtype in ("float16", "float32")
    }
    for dtype in ("float16", "float32"):
        recipes[f"shared, {dtype}"] = f"both=kakeya(bits=3,rank=0.5,basis=shared,skeleton_dtype={dtype})"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="kakeya-skeleton",
    question="At one rank, does it matter how the principal components are found, in which precision they are stored, "
    "and whether every block has its own?",
    claims=(
        "KakeyaTurbo: randomised SVD at half the rank is as good as exact PCA; float16 skeletons cost nothing; a basis "
        "shared by a layer saves its bytes",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="exact, float16",
    notes=(
        "K and V, rank D/2, 3 bits, blocks of 512 tokens, each head its own. The shared mean and basis are fitted once "
        "to training text, exactly, whatever method blocks would use; centres stay per block, and its bytes are a "
        "table's, not the cache's.",
    ),
)

"""How many principal components are worth their bytes?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_SHARES = (0.25, 0.5, 0.75)


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    recipes = {f"exact, {share:g} D": f"both=kakeya(bits=3,rank={share})" for share in _SHARES}
    recipes["exact, D"] = "both=kakeya(bits=3)"
    recipes |= {f"randomised, {share:g} D": f"both=kakeya(bits=3,pca=randomized,rank={share})" for share in _SHARES}
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="kakeya-rank",
    question="How many of D principal components are worth their bytes?",
    claims=("KakeyaTurbo: half of them (factor 0.5) for its randomised recipes; C2 raises it to 0.75",),
    cells=_cells,
    columns=COLUMNS,
    baseline="exact, D",
    notes=(
        "K and V at 3 bits, blocks of 512 tokens. A rank that is no power of two is padded to one before the Hadamard "
        "transform: 0.75 D stores the codes of D.",
    ),
)

"""Are the first and last layers special?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del context
    inner = "both=kakeya(bits=2)"
    recipes = {"none": inner}
    for depth in (1, 2):
        if 2 * depth < config.num_layers:
            recipes[f"{depth} at each end, exact"] = f"{inner},boundary={depth}"
            recipes[f"{depth} at each end, 4 bits"] = f"{inner},boundary={depth},boundary_codec=kakeya(bits=4)"
    for depth in (1, 2):
        middle = range(config.num_layers // 2 - depth, config.num_layers // 2 + depth)
        if 2 * depth < config.num_layers:
            named = ",".join(map(str, middle))
            recipes[f"{2 * depth} in the middle, exact"] = f"both[{named}]=identity(block_size=512),{inner}"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="boundary",
    question="Is protecting the first and last layers better than protecting as many in the middle?",
    claims=(
        "KakeyaTurbo: 4 to 8 boundary layers of 28 at 4 bits or exact; a later study of the same authors finds them "
        "unnecessary",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="none",
    notes=("K and V at 2 bits, exact PCA at full rank, blocks of 512 tokens; bits are those of the coded layers.",),
)

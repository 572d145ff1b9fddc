"""Should heads share their blocks?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_BLOCK = 512


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del context
    heads = config.num_kv_heads
    same_bytes = max(1, _BLOCK // heads)
    settings = {
        f"each head alone, block {_BLOCK}": f"block_size={_BLOCK}",
        f"{heads} heads mixed, block {_BLOCK}": f"block_size={_BLOCK},mix_heads=true",
        f"{heads} heads mixed, block {same_bytes}": f"block_size={same_bytes},mix_heads=true",
    }
    recipes = {}
    for label, options in settings.items():
        recipes[f"K: {label}"] = f"key=kakeya(bits=3,{options}),value=identity(block_size={_BLOCK})"
    for label, options in settings.items():
        recipes[f"V: {label}"] = f"key=identity(block_size={_BLOCK}),value=kakeya(bits=3,{options})"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="heads",
    question="Is one skeleton for all heads as good as one for each, at the same tokens or the same bytes?",
    claims=("KakeyaTurbo: rows of all heads share a block, token after token and head after head",),
    cells=_cells,
    columns=COLUMNS,
    baseline=f"K: each head alone, block {_BLOCK}",
    notes=(
        "One stream coded, the other exact with the same page. Mixed heads at the same tokens have one skeleton where "
        "heads alone have one each; at tokens divided by the number of heads the bytes are the same.",
    ),
)

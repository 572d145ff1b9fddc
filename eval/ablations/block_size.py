"""How long should a block be?"""

from kakeya_jax.eval.ablations.ablation import Ablation, Size
from kakeya_jax.eval.ablations.grid import expanded_rows
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_BLOCKS = (64, 128, 256, 512, 1024, 2048)


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    """Block sizes of which a context holds one after the exact window, or all if it holds none."""
    del config
    fitting = [block for block in _BLOCKS if block + 4 + 128 <= context] or list(_BLOCKS[:1])
    page = max(fitting)
    recipes = {}
    for block in fitting:
        recipes[f"K: block {block}"] = f"key=kakeya(bits=3,block_size={block}),value=identity(block_size={page})"
    for block in fitting:
        recipes[f"V: block {block}"] = f"key=identity(block_size={page}),value=kakeya(bits=3,block_size={block})"
    return recipe_cells(recipes)


ABLATION = Ablation(
    name="block-size",
    question="How long should a block be: fresh statistics against the bytes of a skeleton?",
    claims=("KakeyaTurbo: 512 or 1024 rows (of two heads)",),
    cells=_cells,
    columns=COLUMNS,
    baseline="K: block 64",
    findings=expanded_rows,
    notes=(
        "Exact PCA at full rank, 3 bits, each head its own blocks; one stream coded, the other exact with the page of "
        "the largest block, so that all rows keep the same tokens exact. Only what fits the context is measured.",
    ),
    demo=Size(context=4096, passages=4),
)

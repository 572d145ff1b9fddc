"""What do bits, variance ratio and block size buy, and where do small blocks expand the data?"""

from collections.abc import Mapping

from kakeya_jax.eval.ablations.ablation import Ablation, Row
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_BLOCKS = (64, 128, 512)


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    return recipe_cells(
        {
            f"{bits} bits, ratio {ratio:g}, block {block}": (
                f"key=kakeya(bits={bits},variance_ratio={ratio},block_size={block}),"
                f"value=identity(block_size={max(_BLOCKS)})"
            )
            for bits in (2, 3, 4)
            for ratio in (1.0, 0.95)
            for block in _BLOCKS
        }
    )


def expanded_rows(rows: Mapping[str, Row]) -> list[str]:
    """The rows whose codes take more bits than bfloat16."""
    expanded = [label for label, row in rows.items() if row["coded_bits"] is not None and row["coded_bits"] > 16]
    if not expanded:
        return ["No setting takes more bits than bfloat16."]
    return [f"Larger than the bfloat16 that they replace: {'; '.join(expanded)}."]


ABLATION = Ablation(
    name="kakeya-grid",
    question="What do bits, variance ratio and block size buy in quality, at which bytes?",
    claims=(
        "KakeyaTurbo: a variance ratio of 0.95 to 1 and blocks of 512 to 1024 rows; its reports count blocks of 512 "
        "rows with two heads in each",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="3 bits, ratio 1, block 512",
    findings=expanded_rows,
    notes=(
        "Keys only; values stay exact, with the page of the largest block: all rows keep the same tokens exact. Each "
        "head has its own blocks of exact PCA. Shapes are static here: a variance ratio below one drops "
        "coefficients but stores as many, so it changes quality and not bytes (kakeya-rank changes both).",
    ),
)

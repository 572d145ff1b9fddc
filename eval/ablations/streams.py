"""Which of keys and values carries the loss?"""

from collections.abc import Mapping

from kakeya_jax.eval.ablations.ablation import Ablation, Row
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_CODECS = {"kakeya 3": "kakeya(bits=3)", "turboquant 2": "turboquant(bits=2,block_size=512)"}


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    recipes = {}
    for label, codec in _CODECS.items():
        recipes[f"{label}, K and V"] = f"both={codec}"
        recipes[f"{label}, K only"] = f"key={codec},value=identity(block_size=512)"
        recipes[f"{label}, V only"] = f"key=identity(block_size=512),value={codec}"
    return recipe_cells(recipes)


def _findings(rows: Mapping[str, Row]) -> list[str]:
    found = []
    for label in _CODECS:
        both, key, value = (rows[f"{label}, {part}"]["kl_mean"] for part in ("K and V", "K only", "V only"))
        if None not in (both, key, value) and both > 0:
            found.append(
                f"{label}: keys alone cost {100 * key / both:.0f} % of the KL of both, values alone "
                f"{100 * value / both:.0f} %."
            )
    return found


ABLATION = Ablation(
    name="streams",
    question="How much of the loss comes from keys, and how much from values?",
    claims=("KakeyaTurbo: keys carry about two thirds",),
    cells=_cells,
    columns=COLUMNS,
    baseline="kakeya 3, K and V",
    findings=_findings,
    notes=("The stream left exact has the same page, so that all rows keep the same tokens exact.",),
)

"""What is whitening of keys by the queries' second moment (Q-preconditioning) worth, decoded alike in both arms?"""

from collections.abc import Mapping

from kakeya_jax.eval.ablations.ablation import Ablation, Row
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, compare, interval, recipe_cells
from kakeya_jax.models.config import ModelConfig

_ARMS = {"plain": "", "whitened": ",whiten=true", "whitened, condition <= 50": ",whiten=true,max_condition=50.0"}
_SETTINGS = {
    "2 bits": "bits=2",
    "3 bits": "bits=3",
    "4 bits": "bits=4",
    "3 bits, randomised D/2": "bits=3,pca=randomized",
}


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    return recipe_cells(
        {
            f"{setting}, {arm}": f"key=kakeya({options}{more}),value=identity(block_size=512)"
            for setting, options in _SETTINGS.items()
            for arm, more in _ARMS.items()
        }
    )


def _findings(rows: Mapping[str, Row]) -> list[str]:
    found = []
    for setting in _SETTINGS:
        for arm in list(_ARMS)[1:]:
            paired = compare(rows[f"{setting}, {arm}"], rows[f"{setting}, plain"])
            ratio = interval(paired["kl_ratio"], paired["kl_ratio_ci95"])
            found.append(f"KL of {setting}, {arm}, over that of the same without: {ratio}.")
    return found


ABLATION = Ablation(
    name="whitening",
    question="What is whitening of keys worth when both arms are decoded for least squared error?",
    claims=(
        "KakeyaTurbo: V0 (+356 % perplexity) against V1 (+38 %) is credited to Q-preconditioning; but only its runs "
        "without it decoded residuals with norm one instead of their own",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="3 bits, plain",
    findings=_findings,
    notes=(
        "Keys only, blocks of 512 tokens, each head its own. The map comes from training text; a bound on its "
        "condition number changes nothing where the map is below it anyway. The map is that of queries at a key's own "
        "position; the notebook `whitening` shows what the rotary embedding makes of it at others.",
    ),
)

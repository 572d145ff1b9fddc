"""What do unreachable magnitude levels cost?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    streams = {
        "V": "key=identity(block_size=512),value={}",
        "K": "key={},value=identity(block_size=512)",
    }
    settings = {
        f"{bits} bits, {levels}": f"magnitude_bits={bits},magnitude_levels={levels}"
        for bits in (2, 3, 4)
        for levels in ("reachable", "reference")
    }
    settings["float16"] = "magnitude=float16"
    return recipe_cells(
        {
            f"{stream}: {label}": form.format(f"besicovitch(direction_bits=3,{options},block_size=512)")
            for stream, form in streams.items()
            for label, options in settings.items()
        }
    )


ABLATION = Ablation(
    name="besicovitch-levels",
    question="What do magnitude levels that can never be reached cost, in keys and in values?",
    claims=(
        "KakeyaTurbo: magnitudes are divided by the vector's largest and then quantised with Gaussian levels, of which "
        "half lie beyond 1; Besicovitch codes are proposed for values",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="V: 4 bits, reachable",
    notes=(
        "8 directions for each pair of coordinates, block means, blocks of 512 tokens; magnitudes of 2, 3 or 4 bits. "
        "reachable: levels fitted to what occurs, scale by least squares; reference: as published.",
    ),
)

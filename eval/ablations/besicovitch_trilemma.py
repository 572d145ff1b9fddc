"""Whitened keys: a scale for every vector, or fixed scales of pairs from calibration?"""

from kakeya_jax.eval.ablations.ablation import Ablation
from kakeya_jax.eval.ablations.recipe_cells import COLUMNS, RecipeCell, recipe_cells
from kakeya_jax.models.config import ModelConfig

_BITS = "direction_bits=4,magnitude_bits=4,block_size=512"
_KEYS = {
    "scale of the vector, plain": f"besicovitch({_BITS})",
    "scale of the vector, whitened": f"besicovitch({_BITS},whiten=true)",
    "scale of the vector, whitened, published levels": f"besicovitch({_BITS},whiten=true,magnitude_levels=reference)",
    "float16 magnitudes, whitened": "besicovitch(direction_bits=4,magnitude=float16,block_size=512,whiten=true)",
    "fixed scales, plain": f"riemannian({_BITS})",
    "fixed scales, whitened": f"riemannian({_BITS},whiten=true)",
    "fixed scales (trace), whitened": f"riemannian({_BITS},whiten=true,scale_mode=sqrt_trace)",
    "fixed scales (99 %), whitened": f"riemannian({_BITS},whiten=true,scale_mode=pct99)",
    "fixed scales, whitened, published levels": f"riemannian({_BITS},whiten=true,centroids=quantile)",
}


def _cells(config: ModelConfig, context: int) -> tuple[RecipeCell, ...]:
    del config, context
    return recipe_cells({label: f"key={codec},value=identity(block_size=512)" for label, codec in _KEYS.items()})


ABLATION = Ablation(
    name="besicovitch-trilemma",
    question="On whitened keys, are directions with a scale for every vector worse than with fixed scales?",
    claims=(
        "KakeyaTurbo: whitened keys, quantised magnitudes and a scale for each vector cannot be had together; fixed "
        "scales for each pair ('Riemannian') can; those were fitted to the very keys that were coded",
    ),
    cells=_cells,
    columns=COLUMNS,
    baseline="scale of the vector, plain",
    notes=(
        "Keys only: 16 directions and 16 magnitudes for each pair of coordinates, block means, blocks of 512 tokens. "
        "Scales and levels are fitted to training text.",
    ),
)

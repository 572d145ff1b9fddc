"""The ablations by name."""

from kakeya_jax.close_names import did_you_mean
from kakeya_jax.eval.ablations import (
    besicovitch_levels,
    besicovitch_trilemma,
    block_size,
    boundary,
    centroids,
    context,
    depth,
    grid,
    heads,
    integer_gates,
    kmeans,
    outliers,
    rank,
    retrieval,
    rotated_values,
    rotation,
    selection,
    skeleton,
    speed_ceiling,
    stages,
    streams,
    trajectory,
    whitening,
)
from kakeya_jax.eval.ablations.ablation import Ablation

_MODULES = (
    skeleton,
    grid,
    rank,
    block_size,
    heads,
    whitening,
    kmeans,
    centroids,
    outliers,
    boundary,
    streams,
    depth,
    stages,
    rotation,
    besicovitch_levels,
    besicovitch_trilemma,
    speed_ceiling,
    selection,
    integer_gates,
    rotated_values,
    context,
    retrieval,
    trajectory,
)
ABLATIONS: dict[str, Ablation] = {module.ABLATION.name: module.ABLATION for module in _MODULES}
"""In the order in which they are listed."""


def find_ablation(name: str) -> Ablation:
    """The ablation of that name.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    if name not in ABLATIONS:
        raise ValueError(f"unknown ablation {name!r};{did_you_mean(name, ABLATIONS)} ablations: {', '.join(ABLATIONS)}")
    return ABLATIONS[name]

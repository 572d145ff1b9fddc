"""Which streams of a recipe have tables fitted to them alone, and what these are called in a calibration."""

from collections import defaultdict
from collections.abc import Sequence

from kakeya_jax.codecs.fitting import needs_own_tables, pools_layers
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.recipe import Recipe, StreamPlan
from kakeya_jax.recipe_text import format_codec
from kakeya_jax.typing import StoredName


def fitted_streams(recipe: Recipe, num_layers: int) -> dict[tuple[StoredName, StreamPlan], tuple[int, ...]]:
    """The streams with tables of their own, and the layers that are fitted together."""
    groups: dict[tuple[StoredName, StreamPlan], tuple[int, ...]] = defaultdict(tuple)
    for layer, plan in enumerate(recipe.plan(num_layers)):
        if isinstance(plan.key.codec, KltStorageConfig):
            groups["both", plan.key] += (layer,)
            continue
        for name, stream in plan.streams():
            if needs_own_tables(stream.codec):
                groups[name, stream] += (layer,)
    return dict(groups)


def fitted_name(stream: StreamPlan, layers: Sequence[int]) -> str:
    """What a stream's own tables are stored under.

    The codec's text form; where it stores keys, if not as usual; and the layers, if some table is pooled over them:
    recipes with the same codec and other boundary layers have other tables.
    """
    text = format_codec(stream.codec)
    if stream.rope not in (None, stream.codec.rope):
        text += f"@{stream.rope}"
    if pools_layers(stream.codec):
        text += f" over layers {','.join(map(str, layers))}"
    return text

"""Stand-ins for calibrated tables, so that bytes can be counted before anything is calibrated."""

from kakeya_jax.cache import ModelShape, Tables
from kakeya_jax.codec import CodecConfig
from kakeya_jax.recipe import Recipe, StreamPlan
from kakeya_jax.typing import Array, StoredName


def neutral_tables(config: ModelShape, recipe: Recipe) -> Tables:
    """``CodecConfig.neutral_tables`` of every stream of a model; nothing for streams that need no tables.

    Layers with the same codec share their arrays.

    Args:
        config: the model's config.
        recipe: what is to be counted.

    Raises:
        ValueError: the recipe does not fit the model.
    """
    made: dict[CodecConfig, dict[str, Array]] = {}
    tables: dict[tuple[int, StoredName], dict[str, Array]] = {}
    for layer, plan in enumerate(recipe.plan(config.num_layers)):
        stored: tuple[tuple[StoredName, StreamPlan], ...] = (("both", plan.key),) if plan.joint else plan.streams()
        for name, stream in stored:
            codec = stream.codec
            if codec.needs_tables():
                if codec not in made:
                    made[codec] = codec.neutral_tables(config.head_dim, num_kv_heads=config.num_kv_heads)
                tables[layer, name] = made[codec]
    return tables

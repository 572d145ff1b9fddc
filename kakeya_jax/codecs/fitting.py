"""Tables that are fitted to the very vectors a codec will see: skeletons, scales and quantiser levels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import lloyd_max
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs import riemannian
from kakeya_jax.codecs.kakeya import KakeyaConfig, fit_shared
from kakeya_jax.codecs.riemannian import RiemannianConfig
from kakeya_jax.typing import Array, Float

_OWN_TABLES = {"mean", "basis", "scales", "centroids"}
"""Names of the tables that are made here; others (``CodecConfig.needs_tables``) come from moments of the model."""

_LayerTables = dict[str, Any]  # of numpy arrays


def fit_own_tables(
    config: CodecConfig, layers: Sequence[Float[np.ndarray, "N K T D"]], others: Sequence[dict[str, Any]] | None = None
) -> list[_LayerTables]:
    """Those tables of ``config`` that are fitted to its own streams, for every layer it codes.

    Levels that are ``"pooled"`` are fitted once to all of these layers; everything else to each layer alone.

    Args:
        config: of the codec.
        layers: for each layer, vectors of ``N`` passages in the coordinates the codec sees: keys before or after their
            rotary embedding as they are stored, and through the frame if the config has one (``frame.Frame.enter``).
            Leave out tokens that will stay exact, such as sinks.
        others: for each layer, the tables it has already (``query_second_moment``); None if there are none.

    Returns:
        For each layer, tables by name; empty if it needs none (``needs_own_tables``).

    Raises:
        ValueError: a passage is shorter than a block, or a vector is not finite.
    """
    if not needs_own_tables(config):
        return [{} for _ in layers]
    if isinstance(config, RiemannianConfig):
        return _riemannian(config, layers)
    assert isinstance(config, KakeyaConfig)
    return _kakeya(config, layers, others or [{} for _ in layers])


def needs_own_tables(config: CodecConfig) -> bool:
    """Whether ``fit_own_tables`` has something to fit for a codec."""
    return isinstance(config, KakeyaConfig | RiemannianConfig) and not _OWN_TABLES.isdisjoint(config.needs_tables())


def pools_layers(config: CodecConfig) -> bool:
    """Whether some table is fitted to all layers that a codec has."""
    return isinstance(config, KakeyaConfig | RiemannianConfig) and config.centroids == "pooled"


def blocks_of(config: CodecConfig, vectors: Float[np.ndarray, "N K T D"]) -> Float[np.ndarray, "b n D"]:
    """A stream cut into the blocks that the cache would make of it, mixed heads included; the rest is dropped.

    Raises:
        ValueError: a passage is shorter than a block.
    """
    passages, heads, length, dim = vectors.shape
    size = config.block_size
    if length < size:
        raise ValueError(
            f"{config.name}: passages of {length} tokens are shorter than block_size={size}; use longer ones"
        )
    blocks = vectors[:, :, : length // size * size].reshape(passages, heads, -1, size, dim)
    if config.mix_heads:
        return blocks.transpose(0, 2, 3, 1, 4).reshape(-1, size * heads, dim)
    return blocks.reshape(-1, size, dim)


def _kakeya(config: KakeyaConfig, layers: Sequence[np.ndarray], others: Sequence[dict[str, Any]]) -> list[_LayerTables]:
    dim = layers[0].shape[-1]
    tables: list[dict[str, Any]] = [{} for _ in layers]
    if config.basis == "shared":
        shared = [fit_shared(jnp.asarray(each.reshape(-1, dim)), config.rank_of(dim)) for each in layers]
        tables = [{name: np.asarray(table) for name, table in each.items()} for each in shared]
    if "centroids" in config.needs_tables():
        start = {"centroids": jnp.asarray(lloyd_max.gaussian_levels(config.bits))}
        codecs = [
            config.build(dim, tables={**given, **own, **start}) for given, own in zip(others, tables, strict=True)
        ]
        samples = [_map_blocks(codec, blocks_of(config, each)) for codec, each in zip(codecs, layers, strict=True)]
        _add_levels(config, tables, samples, lambda z: lloyd_max.fit_levels(z, config.bits))
    return tables


def _riemannian(config: RiemannianConfig, layers: Sequence[np.ndarray]) -> list[_LayerTables]:
    blocks = [jnp.asarray(blocks_of(config, each)) for each in layers]
    tables = [
        {"scales": riemannian.fit_scales(riemannian.deviations(config, each), config.scale_mode)} for each in blocks
    ]
    if "centroids" in config.needs_tables():
        samples = [
            riemannian.unit_magnitudes(config, each, table["scales"])
            for each, table in zip(blocks, tables, strict=True)
        ]
        _add_levels(config, tables, samples, lambda u: riemannian.fit_centroids(u, config.magnitude_bits))
    return tables


def _add_levels(
    config: KakeyaConfig | RiemannianConfig,
    tables: list[_LayerTables],
    samples: list[np.ndarray],
    fit: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Puts ``centroids`` into each layer's tables: fitted to its samples, or to those of all layers."""
    if config.centroids == "pooled":
        levels = fit(lloyd_max.pool_samples(samples))
        each_levels = [levels for _ in samples]
    else:
        each_levels = [fit(lloyd_max.pool_samples([each])) for each in samples]
    for table, levels in zip(tables, each_levels, strict=True):
        table["centroids"] = levels


@jax.jit
def _standard_residuals(codec: Any, blocks: Array) -> Array:
    return jax.lax.map(codec.standard_residual, blocks)


def _map_blocks(codec: Any, blocks: np.ndarray) -> np.ndarray:
    return np.asarray(_standard_residuals(codec, jnp.asarray(blocks)))

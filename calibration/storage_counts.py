"""Tables of ``klt-storage`` counted on a text: the frequencies that occur, and a budget that the text really meets."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.calibration.storage_fit import LayerMoments, LayerTables, fit_coordinates, joint_coordinates
from kakeya_jax.codecs.klt_storage import KltStorage, KltStorageConfig
from kakeya_jax.entropy.frequencies import cross_entropy, integer_frequencies
from kakeya_jax.typing import Array, Float

_SMOOTHING = 0.5
"""Added to every count of a symbol, so that what calibration has not seen is possible."""

_ESCAPE_BITS = 16
"""Raw bits that follow an escape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymbolCounts:
    """How often each symbol of each channel of a layer occurred.

    Attributes:
        symbols: int64 ``[kept, S]``, the last of them those that are escaped.
        page_means: int64 ``[C, S']``, likewise; None without page means.
        low_bits: bits of all low parts.
        values: numbers that were coded, dropped channels included.
    """

    symbols: np.ndarray
    page_means: np.ndarray | None
    low_bits: int
    values: int


def calibrate_storage(
    config: KltStorageConfig,
    layers: Sequence[LayerMoments],
    blocks: Sequence[Float[np.ndarray, "pages twoK n D"]],
    *,
    rounds: int = 3,
) -> list[LayerTables]:
    """Fits, counts on a text, and fits again until the text takes ``config.bits`` per value.

    Args:
        config: of the codec.
        layers: moments of each layer.
        blocks: pages of calibration text for each layer, from ``joint_blocks``.
        rounds: fits; each aims at what the one before missed.

    Returns:
        Tables of each layer, their frequencies counted on ``blocks``.
    """
    coordinates = [joint_coordinates(layer) for layer in layers]
    head_dim = layers[0].mean_key.shape[1]
    target = config.bits
    refined: list[LayerTables] = []
    for _ in range(rounds):
        tables = fit_coordinates(config, coordinates, bits=target)
        codecs = [config.build(head_dim, tables={k: jnp.asarray(v) for k, v in table.items()}) for table in tables]
        counts = [count_symbols(codec, pages) for codec, pages in zip(codecs, blocks, strict=True)]
        refined = [refine(table, count) for table, count in zip(tables, counts, strict=True)]
        target = max(0.01, target + config.bits - coded_bits(refined, counts))
    return refined


def joint_blocks(
    key: Float[np.ndarray, "K T D"], value: Float[np.ndarray, "K T D"], block_size: int
) -> Float[np.ndarray, "pages twoK n D"]:
    """Whole pages of one passage; what is left over at its end is dropped."""
    both = np.concatenate([key, value])
    heads, length, dim = both.shape
    pages = length // block_size
    return both[:, : pages * block_size].reshape(heads, pages, block_size, dim).transpose(1, 0, 2, 3)


def count_symbols(codec: KltStorage, blocks: Float[np.ndarray, "pages twoK n D"]) -> SymbolCounts:
    """Codes pages of calibration text and counts; see ``joint_blocks``."""
    code = _encode_pages(_all_channels(codec), jnp.asarray(blocks))
    kept = codec.steps.shape[0]
    symbols = _count(np.asarray(code.symbols)[..., :kept].transpose(2, 0, 1), codec.frequencies)
    page_means = None
    if code.page_mean is not None and codec.page_mean_frequencies is not None:
        page_means = _count(np.asarray(code.page_mean).T, codec.page_mean_frequencies)
    low_bits = int(np.sum(codec.low_bits)) * int(symbols[:1].sum())
    return SymbolCounts(symbols=symbols, page_means=page_means, low_bits=int(low_bits), values=int(np.size(blocks)))


def add_counts(first: SymbolCounts, second: SymbolCounts) -> SymbolCounts:
    """The counts of both texts."""
    page_means = None
    if first.page_means is not None and second.page_means is not None:
        page_means = first.page_means + second.page_means
    return SymbolCounts(
        symbols=first.symbols + second.symbols,
        page_means=page_means,
        low_bits=first.low_bits + second.low_bits,
        values=first.values + second.values,
    )


def refine(tables: LayerTables, counts: SymbolCounts) -> LayerTables:
    """The tables with frequencies of what really occurred, every symbol of an alphabet half an occurrence more."""
    refined = dict(tables, frequencies=_smoothed(counts.symbols, tables["frequencies"]))
    if counts.page_means is not None:
        refined["page_mean_frequencies"] = _smoothed(counts.page_means, tables["page_mean_frequencies"])
    return refined


def coded_bits(tables: Sequence[LayerTables], counts: Sequence[SymbolCounts]) -> float:
    """Bits per value that counted symbols take with these tables, page means and escapes included."""
    total = 0.0
    for table, count in zip(tables, counts, strict=True):
        total += _bits(count.symbols, table["frequencies"]) + count.low_bits
        if count.page_means is not None:
            total += _bits(count.page_means, table["page_mean_frequencies"])
    return total / sum(count.values for count in counts)


def _all_channels(codec: KltStorage) -> KltStorage:
    """The codec with steps of infinity for dropped channels: the same shapes, and one compilation, for all layers."""
    channels, kept = codec.mean.shape[0], codec.steps.shape[0]
    return dataclasses.replace(
        codec,
        steps=jnp.pad(codec.steps, (0, channels - kept), constant_values=jnp.inf),
        gains=jnp.zeros(channels),
        low_bits=jnp.pad(codec.low_bits, (0, channels - codec.low_bits.shape[0])),
        frequencies=jnp.zeros((channels, 2), jnp.uint16),
    )


@jax.jit
def _encode_pages(codec: KltStorage, blocks: Array):
    return jax.vmap(codec.encode)(blocks)


def _count(values: np.ndarray, frequencies: Array) -> np.ndarray:
    """Occurrences of each symbol of each channel; ``values`` is ``[channels, ...]``."""
    channels, symbols = frequencies.shape
    half = symbols // 2 - 1
    flat = values.reshape(channels, int(np.prod(values.shape[1:]))).astype(np.int64)
    index = np.where(np.abs(flat) <= half, flat + half, symbols - 1)
    index = np.where(np.take_along_axis(np.asarray(frequencies), index, axis=1) > 0, index, symbols - 1)
    index += symbols * np.arange(channels)[:, None]
    return np.bincount(index.reshape(-1), minlength=channels * symbols).reshape(channels, symbols)


def _smoothed(counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    return integer_frequencies(np.where(frequencies > 0, counts + _SMOOTHING, 0.0)) if len(counts) else frequencies


def _bits(counts: np.ndarray, frequencies: np.ndarray) -> float:
    return cross_entropy(counts, frequencies) + _ESCAPE_BITS * float(counts[:, -1].sum())

"""Plain numpy implementations of the codecs: oracles for tests and baselines for ``kakeya bench encode``."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kakeya_jax.codec import CodecConfig
from kakeya_jax.eval.numpy_codecs import besicovitch, fp8, identity, integer, kakeya, kivi, klt, riemannian, turboquant
from kakeya_jax.typing import StreamName

_ENCODE: dict[str, Callable[[np.ndarray, Any, StreamName], Any]] = {
    "identity": identity.encode,
    "fp8": fp8.encode,
    "int8": integer.encode,
    "int4": integer.encode,
    "kivi": kivi.encode,
    "turboquant": turboquant.encode,
    "besicovitch": besicovitch.encode,
    "riemannian": lambda blocks, config, stream: riemannian.encode(
        blocks, config, config.neutral_tables(blocks.shape[-1])
    ),
    "klt": lambda blocks, config, stream: klt.encode(
        blocks,
        config,
        stream,
        {name: np.asarray(table) for name, table in config.neutral_tables(blocks.shape[-1]).items()},
    ),
    "kakeya": lambda blocks, config, stream: kakeya.encode(blocks.reshape(-1, blocks.shape[-1]), config),
}


def has_baseline(config: CodecConfig) -> bool:
    """Whether there is a numpy implementation of a codec at its settings: of trellises there is none."""
    return config.name in _ENCODE and not getattr(config, "trellis", False)


def encode(blocks: np.ndarray, config: CodecConfig, stream: StreamName = "key") -> Any:
    """The codes of ``blocks`` ``[b, n, d]`` (float32, finite), in the codec's own container of arrays.

    Raises:
        ValueError: the codec has no numpy baseline.
    """
    if not has_baseline(config):
        known = ", ".join(_ENCODE)
        raise ValueError(f"no numpy baseline of {config.name!r} at these settings; there is one of: {known}")
    return _ENCODE[config.name](blocks, config, stream)

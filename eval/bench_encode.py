"""Encode speed of every codec on this machine, beside plain numpy in the same run."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import threadpoolctl

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.registry import codec_config, codec_names
from kakeya_jax.eval import numpy_codecs
from kakeya_jax.testing import synthetic_kv

_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "identity": ({},),
    "int8": ({},),
    "int4": ({}, {"affine": True}),
    "kivi": ({"bits": 2}, {"bits": 4}),
    "turboquant": ({"bits": 2}, {"bits": 3}, {"bits": 4}, {"bits": 4, "qjl": True}),
    "besicovitch": ({"direction_bits": 3, "magnitude_bits": 4, "block_size": 512},),
    "riemannian": ({"direction_bits": 6, "magnitude_bits": 4, "block_size": 512},),
    "kakeya": ({"bits": 4}, {"bits": 3, "pca": "randomized"}),
    "klt": (
        *({"bits": bits} for bits in (2.0, 4.0)),
        *({"bits": 2.0, "form": "quality", "trellis": trellis} for trellis in (False, True)),
    ),
}
"""The settings of the named recipes, for each codec; calibrated tables are neutral ones of the same shapes."""

_SETTLE_SECONDS = 0.3
"""Pause before a measurement, for threads of the one before to go to sleep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeSpeed:
    """One codec at one setting.

    Attributes:
        codec: the method's name.
        settings: options that differ from the method's defaults, as ``name=value``.
        vectors_per_second: jitted, all blocks in one call, without compilation.
        numpy_vectors_per_second: the numpy baseline of the same codec on the same vectors, its BLAS on as many threads
            as it takes; None if there is no baseline.
        numpy_one_thread_vectors_per_second: the same with its BLAS on one thread, as XLA runs most of these programs.
        compile_seconds: of the first call, tracing included.
        bits_per_value: of the code, every side byte included.
    """

    codec: str
    settings: str
    vectors_per_second: float
    numpy_vectors_per_second: float | None
    numpy_one_thread_vectors_per_second: float | None
    compile_seconds: float
    bits_per_value: float

    @property
    def ratio(self) -> float | None:
        """How many times as fast as numpy with all its threads."""
        return _over(self.vectors_per_second, self.numpy_vectors_per_second)

    @property
    def ratio_one_thread(self) -> float | None:
        """How many times as fast as numpy on one thread."""
        return _over(self.vectors_per_second, self.numpy_one_thread_vectors_per_second)


def bench_encode(
    names: Sequence[str] | None = None,
    *,
    vectors: int = 4096,
    head_dim: int = 128,
    repeats: int = 9,
    on_row: Callable[[EncodeSpeed], None] = lambda row: None,
) -> list[EncodeSpeed]:
    """Times the encoding of ``vectors`` synthetic keys of dimension ``head_dim``.

    Args:
        names: codecs, all of them if None.
        vectors: a multiple of every block size (512 or 4096 and the like).
        head_dim: dimension of the vectors.
        repeats: calls of each implementation; the median counts.
        on_row: called with each row as soon as it is measured.

    Raises:
        ValueError: unknown codec, or ``vectors`` is not a multiple of a codec's block size.
    """
    configs = [
        codec_config(name, **options)
        for name in (codec_names() if names is None else names)
        for options in _SETTINGS.get(name, ({},))
    ]
    for config in configs:
        if vectors % config.block_size:
            raise ValueError(f"vectors={vectors} must be a multiple of {config.name}'s block_size={config.block_size}")
        if config.joint_streams and vectors // config.block_size % 2:
            raise ValueError(f"vectors={vectors} must be a multiple of two blocks of {config.name}: keys and values")
    keys = np.asarray(synthetic_kv(0, vectors, head_dim, "key"))
    rows = []
    for config in configs:
        rows.append(_measure(config, keys.reshape(-1, config.block_size, head_dim), repeats))
        on_row(rows[-1])
    return rows


def _measure(config: CodecConfig, blocks: np.ndarray, repeats: int) -> EncodeSpeed:
    codec = config.build(blocks.shape[-1], tables=config.neutral_tables(blocks.shape[-1]))
    on_device = jax.device_put(blocks)
    if config.joint_streams:
        on_device = on_device.reshape(-1, 2, *blocks.shape[1:])  # stand for a head's keys and its values
    elif config.joint_heads:
        on_device = on_device[:, None]
    # The codec is an argument, not a constant: its tables must not be folded into the program.
    encode = jax.jit(lambda codec, blocks: jax.vmap(codec.encode)(blocks))
    compile_seconds = _seconds(lambda: encode(codec, on_device))
    with_baseline = numpy_codecs.has_baseline(config)
    if with_baseline:
        numpy_codecs.encode(blocks, config)  # fills its caches of rotations and levels
    # One after the other, not in turn: the threads of numpy's BLAS spin for a while after each call and would take
    # cores from the call that follows.
    time.sleep(_SETTLE_SECONDS)
    count = blocks.shape[0] * blocks.shape[1]
    speed = _vectors_per_second(lambda: encode(codec, on_device), count, repeats)
    numpy_speed = numpy_one_thread_speed = None
    if with_baseline:
        baseline = functools.partial(_vectors_per_second, lambda: numpy_codecs.encode(blocks, config), count, repeats)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            numpy_one_thread_speed = baseline()
        numpy_speed = baseline()
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(encode(codec, on_device)))
    return EncodeSpeed(
        codec=config.name,
        settings=_settings(config),
        vectors_per_second=speed,
        numpy_vectors_per_second=numpy_speed,
        numpy_one_thread_vectors_per_second=numpy_one_thread_speed,
        compile_seconds=compile_seconds,
        bits_per_value=8 * stored / blocks.size,
    )


def _settings(config: CodecConfig) -> str:
    options = dataclasses.asdict(config).items()
    defaults = dataclasses.asdict(type(config)())
    return ", ".join(f"{name}={value}" for name, value in options if value != defaults[name])


def _vectors_per_second(call: Callable[[], Any], count: int, repeats: int) -> float:
    return count / statistics.median(_seconds(call) for _ in range(repeats))


def _over(speed: float, other: float | None) -> float | None:
    return None if other is None else speed / other


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start

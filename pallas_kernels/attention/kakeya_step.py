"""One decode step of attention over ``kakeya`` keys, packed values and exact tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.codecs.kakeya import Kakeya, KakeyaCode
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, TILE, Codes
from kakeya_jax.pallas_kernels.attention.coded_streams import Limits, capacity, coded_stream, unsupported
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.kakeya_halves import half_unit, level_words
from kakeya_jax.pallas_kernels.attention.kakeya_program import kakeya_program
from kakeya_jax.pallas_kernels.attention.kakeya_shape import CENTERS, DIM, KakeyaShape
from kakeya_jax.pallas_kernels.attention.kakeya_turns import by_step, tile_angles, token_angles
from kakeya_jax.pallas_kernels.attention.program_counts import MULTIPROCESSORS, exact_programs
from kakeya_jax.pallas_kernels.attention.softmax_state import LN2, Attended
from kakeya_jax.pallas_kernels.attention.step_parts import attend_parts
from kakeya_jax.pallas_kernels.attention.window_program import WARPS
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

PROGRAMS = 2 * MULTIPROCESSORS
"""Programs that run at a time: two on each multiprocessor of an H100 or H200."""

_RANKS = (64, 128)
_BITS = (2, 3, 4)
_VALUES = Limits(head_dims=(DIM,), group=64, tokens=TILE, bits=(2, 3, 4))


def kakeya_step(
    query: Float[Array, "N G D"],
    key_stream: Stream,
    value_stream: Stream,
    positions: Int[Array, " B"],
    *,
    rope: Rope,
    scale: float,
    splits: int,
    interpret: bool = False,
) -> Attended:
    """Attention of the newest token's queries, ``N = B K`` key/value heads with ``G <= 8`` queries each.

    Args:
        query: after their rotary embedding.
        key_stream: of ``kakeya``, the queries' own token in it; see ``unsupported_kakeya``.
        value_stream: of ``turboquant``.
        positions: of the queries.
        rope: the rotary embedding.
        scale: factor of the logits.
        splits: programs that share the coded tokens of a head.
        interpret: in numpy, on any machine.
    """
    heads, group, dim = query.shape
    geometry, codec, code = key_stream.geometry, key_stream.codec, key_stream.blocks
    value, tokens, bits = coded_stream(value_stream), capacity(key_stream), codec.config.bits
    assert isinstance(value.codes, Codes)
    coded = KakeyaShape(
        dim=dim,
        key=Codes(bits=bits, table=()),
        value=value.codes,
        capacity=tokens,
        group=group,
        splits=splits,
        states=splits + exact_programs(geometry, heads, splits, programs=PROGRAMS),
        warps=WARPS,
        length=codec.rank,
        block=key_stream.block_size,
        centers=code.centers is not None,
        mixed=heads // math.prod(code.norm.shape[:2]),
        level_unit=1.0 if codec.centroids is not None else half_unit(tuple(map(float, gaussian_levels(bits)))),
    )
    queries, factors = _queries(query, coded.rows, scale * rope.attention_factor / LN2)
    frequencies = np.asarray(rope.frequencies, np.float64)
    return attend_parts(
        kakeya_program,
        coded,
        [
            jnp.asarray(HeldWords((coded.value,)).words),
            level_words(codec.levels / coded.level_unit),
            _sign_words(codec),
            jnp.asarray(token_angles(frequencies)),
            jnp.asarray(tile_angles(frequencies, tokens // TILE, geometry.sinks)),
            queries,
            factors,
            *_arrays(code),
            value.words,
            value.scales,
        ],
        query,
        positions,
        [
            *(each.reshape(heads, -1, dim) for each in (key_stream.sinks, key_stream.tail)),
            value.sinks,
            value.tail,
            jnp.asarray(rope.frequencies),
        ],
        [] if value.rotation is None else [value.rotation],
        jnp.zeros(heads, jnp.int32),
        geometry=geometry,
        scale=scale * rope.attention_factor / LN2,
        unit=value.unit,
        back=value.back,
        interpret=interpret,
    )


def unsupported_kakeya(query: Array, key_stream: Stream, value_stream: Stream) -> list[str]:
    """What the kernel does not take, in words."""
    found = unsupported(query, value_stream, value_stream, _VALUES)
    config = key_stream.codec.config
    rank, length = key_stream.codec.rank, len(key_stream.codec.signs)
    if rank not in _RANKS or length != rank:
        found.append(f"kakeya of rank {rank}")
    if config.residual != "lloyd":
        found.append(f"kakeya(residual={config.residual})")
    elif config.bits not in _BITS or (config.bits == 4 and config.centroids != "gaussian"):
        found.append(f"kakeya(bits={config.bits}, centroids={config.centroids})")
    found += ["kakeya with outliers"] if config.outlier_threshold is not None else []
    found += ["kakeya with exact rows"] if config.exact_rows else []
    found += ["kakeya with a shared basis"] if config.basis == "shared" else []
    found += [f"kakeya with {config.kmeans_centers} centres"] if config.kmeans_centers not in (0, CENTERS) else []
    found += [f"a skeleton of {config.skeleton_dtype}"] if config.skeleton_dtype != "float16" else []
    found += ["a static mean or whitening"] if key_stream.frame is not None else []
    found += [f"blocks of {config.block_size} tokens"] if config.block_size % TILE else []
    if key_stream.tail.dtype != value_stream.tail.dtype:
        found.append("exact keys and values of different types")
    return list(dict.fromkeys(found))


def _queries(query: Array, rows: int, scale: float) -> tuple[Array, Array]:
    """Queries of at most 1 in size, and factors of their logits."""
    group = query.shape[1]
    exact = query.astype(jnp.float32)
    largest = jnp.maximum(jnp.max(jnp.abs(exact), axis=-1), jnp.finfo(jnp.float32).tiny)
    even = jnp.pad(exact / largest[..., None], ((0, 0), (0, rows - group), (0, 0)))
    return by_step(even), jnp.pad(largest * scale, ((0, 0), (0, COLUMNS - group)))


def _sign_words(codec: Kakeya) -> Array:
    """int32 ``[L / 2]``: of two signs each, the highest bits of both halves."""
    negative = (codec.signs < 0).astype(jnp.uint32).reshape(-1, 2)
    return jax.lax.bitcast_convert_type(negative[:, 0] << 15 | negative[:, 1] << 31, jnp.int32)


def _arrays(code: KakeyaCode) -> list[Array]:
    """What programs read of keys; something else where there are no centres."""
    heads = math.prod(code.norm.shape[:2])

    def by_head(array: Array | None, keep: int) -> Array:
        array = code.norm if array is None else array
        return array.reshape(heads, -1, *array.shape[array.ndim - keep :])

    skeleton = [by_head(code.basis, 2), by_head(code.centers, 2), by_head(code.mean, 1)]
    return [
        *skeleton,
        by_head(code.codes, 1),
        *(by_head(each, 0) for each in (code.norm, code.projection, code.segment)),
    ]

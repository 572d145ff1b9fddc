"""How long a recipe takes to encode a context."""

import time

import jax

from kakeya_jax.cache import CompressedCache
from kakeya_jax.stream import Stream, encode_blocks

_encode = jax.jit(encode_blocks)


def encode_seconds(cache: CompressedCache, *, repeats: int = 2) -> float:
    """Seconds to encode every coded block of a full cache: all layers, K and V, compilation excluded.

    The blocks hold normal random numbers: the work of every codec depends on shapes alone.

    Args:
        cache: an empty cache of the context's length.
        repeats: runs of each stream; the fastest counts.
    """
    streams = [stream for layer in cache.layers for _, stream in layer.streams()]
    return sum(_stream_seconds(stream, repeats) for stream in streams)


def _stream_seconds(stream: Stream, repeats: int) -> float:
    batch, heads, _, dim = stream.tail.shape
    count = stream.geometry.num_pages * stream.blocks_per_page
    if not count:
        return 0.0
    blocks = jax.random.normal(jax.random.key(0), (batch, heads, count, stream.block_size, dim))
    jax.block_until_ready(_encode(stream.codec, blocks))  # compiles once for each codec and shape
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(_encode(stream.codec, blocks))
        times.append(time.perf_counter() - start)
    return min(times)

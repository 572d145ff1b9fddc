"""What of a stream of ``besicovitch`` values the kernel reads, and what of them it does not take."""

import math

import jax.numpy as jnp
import numpy as np

from kakeya_jax.directions import direction_table
from kakeya_jax.pallas_kernels.attention.besicovitch_program import channel_order
from kakeya_jax.pallas_kernels.attention.besicovitch_tiles import pair_table
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.pallas_kernels.attention.decode_step import CodedStream
from kakeya_jax.stream import Stream


def besicovitch_stream(stream: Stream) -> CodedStream:
    """The arrays of a stream that ``unsupported_besicovitch`` says nothing of."""
    codec, code = stream.codec, stream.blocks
    heads, dim = math.prod(stream.tail.shape[:2]), stream.tail.shape[-1]
    levels = codec.config.levels(dim)
    assert levels is not None
    return CodedStream(
        words=code.pairs.reshape(heads, -1, code.pairs.shape[-1]),
        scales=code.scale.reshape(heads, -1, 1),
        sinks=stream.sinks.reshape(heads, -1, dim),
        tail=stream.tail.reshape(heads, -1, dim),
        rotation=jnp.asarray(np.eye(dim, dtype=np.float32)[channel_order(dim)]),
        codes=Codes(bits=codec.width, table=(), halfway=False),
        unit=1.0,
        pairs=pair_table(levels, direction_table(2, codec.config.direction_bits)),
        means=None if code.mean is None else code.mean.reshape(heads, -1, dim),
    )


def unsupported_besicovitch(stream: Stream) -> list[str]:
    """What the kernel does not take, in words."""
    codec, config = stream.codec, stream.codec.config
    if codec.stream != "value":
        return ["besicovitch in keys"]
    if config.mix_heads:
        return ["besicovitch of all heads together"]
    if config.block_size % 64 or codec.in_pairs(config.block_size):  # pages of other sizes are refused as such
        return []
    magnitudes = "float16" if codec.levels is None else config.magnitude_bits
    return [
        f"besicovitch(group_size={config.group_size}, direction_bits={config.direction_bits}, magnitudes={magnitudes})"
    ]

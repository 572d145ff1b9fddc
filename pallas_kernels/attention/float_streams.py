"""What of a stream of ``fp8`` or ``identity`` the kernel reads, and what of them it does not take."""

import math

import jax.numpy as jnp
import numpy as np

from kakeya_jax.codecs.fp8 import Fp8
from kakeya_jax.codecs.identity import Identity
from kakeya_jax.pallas_kernels.attention.decode_step import CodedStream
from kakeya_jax.pallas_kernels.attention.float_shape import FloatCodes
from kakeya_jax.stream import Stream


def float_stream(stream: Stream) -> CodedStream:
    """The arrays of a stream that ``unsupported_floats`` says nothing of."""
    heads, dim = math.prod(stream.tail.shape[:2]), stream.tail.shape[-1]
    scale = None
    if isinstance(stream.codec, Fp8):
        numbers, scale = stream.blocks.codes, stream.blocks.scale
    else:
        numbers = stream.blocks.values
    # Sums of values are turned back; keys have their channels in order.
    codes = FloatCodes(nbytes=numbers.dtype.itemsize, scaled=scale is not None)
    order = codes.channel_order(dim) if stream.rope is None else list(range(dim))
    numbers = numbers.reshape(heads, -1, dim)
    return CodedStream(
        words=numbers,
        scales=numbers if scale is None else scale.reshape(heads, -1),
        sinks=stream.sinks.reshape(heads, -1, dim),
        tail=stream.tail.reshape(heads, -1, dim),
        rotation=jnp.asarray(np.eye(dim, dtype=np.float32)[order]),
        codes=codes,
        unit=1.0,
    )


def unsupported_floats(codec: Fp8 | Identity) -> list[str]:
    """What the kernel does not take, in words."""
    return [f"{codec.config.name}(mix_heads={codec.config.mix_heads})"] if codec.config.mix_heads else []

"""Faster ways to encode whole pages, which layers above the core bring: kernels of a GPU.

A codec's own ``encode`` says what codes are, and runs anywhere. Where a package that is above the core knows how to
compute the same codes faster on a GPU, it registers that here when it is imported, and every cache uses it there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kakeya_jax.typing import Array, Float

EncodePages = Callable[[Any, Float[Array, "B K blocks n D"]], Any]
"""From a codec and blocks to codes, leaves ``[B, K, blocks, ...]``; ``[B, 1, blocks, ...]`` if heads share a block."""


class PageEncoder(NamedTuple):
    """Of one kind of codec.

    Attributes:
        supports: whether it takes blocks ``[n, D]`` of a codec: of the codec, ``n`` and ``D``.
        encode: on an NVIDIA GPU; equal to what the codec's own gives but for rounding at ties.
    """

    supports: Callable[[Any, int, int], bool]
    encode: EncodePages


_encoders: dict[type, PageEncoder] = {}


def register_page_encoder(codec: type, encoder: PageEncoder) -> None:
    """From now on ``encoder`` encodes the pages of codecs of this very class on an NVIDIA GPU, where it supports them.

    A program that is compiled already keeps what it has.
    """
    _encoders[codec] = encoder


def encode_by_device(reference: EncodePages, codec: Any, blocks: Float[Array, "B K blocks n D"]) -> Any:
    """What ``reference``, which must be hashable, gives; by a registered encoder where there is one for the device.

    That is the device that a program is compiled for, which need not be the default one.
    """
    encoder = _encoders.get(type(codec))
    if encoder is None or jax.default_backend() != "gpu" or not encoder.supports(codec, *blocks.shape[-2:]):
        return reference(codec, blocks)
    return _either(codec, blocks, on_gpu=encoder.encode, elsewhere=reference)


@functools.partial(jax.jit, static_argnames=("on_gpu", "elsewhere"))
def _either(codec: Any, blocks: Array, *, on_gpu: EncodePages, elsewhere: EncodePages) -> Any:
    """Compiled even when called op by op: only then does the device of the arrays decide."""
    return jax.lax.platform_dependent(codec, blocks, cuda=on_gpu, default=elsewhere)

"""Faster ways to encode whole pages, which layers above the core bring: kernels of a GPU.

A codec's own ``encode`` says what codes are, and runs anywhere. Where a package that is above the core knows how to
compute the same codes faster on some device, it registers that here when it is imported, and every cache uses it there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kakeya_jax.typing import Array, Float

EncodePages = Callable[[Any, Float[Array, "B K blocks n D"]], Any]
"""From a codec and blocks to their codes, leaves ``[B, K, blocks, ...]``, ``[B, 1, blocks, ...]`` if heads share one."""


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


def encode_by_device(
    reference: EncodePages, codec: Any, blocks: Float[Array, "B K blocks n D"]
) -> Any:
    """What ``reference`` gives; computed by a registered encoder where there is one for the device.

    The device is the one that a program is compiled for, not the default one.
    """
    encoder = _encoders.get(type(codec))
    if encoder is None or jax.default_backend() != "gpu" or not encoder.supports(codec, *blocks.shape[-2:]):
        return reference(codec, blocks)
    return jax.lax.platform_dependent(codec, blocks, cuda=encoder.encode, default=reference)

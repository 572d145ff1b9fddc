"""The rotated residual of the Kakeya codec as directions and magnitudes of small groups, in place of scalar levels."""

from typing import Literal, NamedTuple

import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.directions import (
    direction_table,
    directions_at,
    nearest_direction,
    quantize_magnitudes,
    signed_magnitude_levels,
)
from kakeya_jax.lloyd_max import dequantize
from kakeya_jax.numeric import to_f16
from kakeya_jax.typing import Array, Float


class GroupFormat(NamedTuple):
    """How groups are stored.

    Attributes:
        group_size: coordinates in a group, ``g``; divides the vectors' length.
        direction_bits: ``2**direction_bits`` directions.
        magnitude: ``"quantized"`` or ``"float16"``.
        magnitude_bits: of quantised magnitudes.
    """

    group_size: int
    direction_bits: int
    magnitude: Literal["quantized", "float16"]
    magnitude_bits: int


class GroupCode(NamedTuple):
    """``n`` vectors of ``G`` groups.

    Attributes:
        directions: packed, uint8 ``[n, ceil(G db / 8)]``.
        magnitudes: packed, uint8 ``[n, ceil(G m / 8)]``, or float16 ``[n, G]``.
    """

    directions: Array
    magnitudes: Array


def encode_groups(z: Float[Array, "n L"], form: GroupFormat) -> tuple[GroupCode, Float[Array, " n"]]:
    """The code of vectors of root mean square one, and the factor that suits the chosen levels best.

    The factor is not part of the code: who stores the vectors' length anyway multiplies it in.
    """
    index, magnitude = nearest_direction(z.reshape(len(z), -1, form.group_size), jnp.asarray(_directions(form)))
    directions = bitpack.pack(index, form.direction_bits)
    if form.magnitude == "float16":
        return GroupCode(directions, to_f16(magnitude)), jnp.ones(len(z), jnp.float32)
    level, factor = quantize_magnitudes(magnitude, jnp.asarray(_levels(form, magnitude.shape[-1])))
    return GroupCode(directions, bitpack.pack(level, form.magnitude_bits)), factor


def decode_groups(code: GroupCode, form: GroupFormat, length: int) -> Float[Array, "n L"]:
    """``magnitude * direction`` of every group, without the factor of ``encode_groups``."""
    count = length // form.group_size
    index = bitpack.unpack(code.directions, form.direction_bits, count)
    if form.magnitude == "float16":
        magnitude = code.magnitudes.astype(jnp.float32)
    else:
        level = bitpack.unpack(code.magnitudes, form.magnitude_bits, count)
        magnitude = dequantize(level, jnp.asarray(_levels(form, count)))
    groups = magnitude[..., None] * directions_at(jnp.asarray(_directions(form)), index)
    return groups.reshape(len(index), length)


def _directions(form: GroupFormat):
    return direction_table(form.group_size, form.direction_bits)


def _levels(form: GroupFormat, group_count: int):
    return signed_magnitude_levels(form.group_size, form.direction_bits, form.magnitude_bits, group_count)

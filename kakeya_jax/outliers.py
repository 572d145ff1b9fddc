"""A fixed number of exactly stored entries for each vector: those a scalar quantiser would clip worst."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.numeric import to_f16
from kakeya_jax.typing import Array, Float


class Outliers(NamedTuple):
    """Sparse entries of ``n`` vectors of length ``L``, ``m`` slots each.

    Attributes:
        position: indices, ``log2 L`` bits each, packed: uint8 ``[n, ceil(m log2(L) / 8)]``.
        value: float16 ``[n, m]``. A stored entry exceeds a positive threshold, so 0 marks a slot that is not
            used.
    """

    position: Array
    value: Array


def default_slots(length: int, threshold: float) -> int:
    """How many of ``length`` standard normals exceed ``threshold`` in magnitude: mean plus one deviation."""
    tail = math.erfc(threshold / math.sqrt(2))
    return min(length, math.ceil(length * tail + math.sqrt(length * tail * (1 - tail))))


def select(z: Float[Array, "n L"], threshold: float, slots: int) -> Outliers:
    """The ``slots`` largest magnitudes of every row, as far as they exceed ``threshold``; first if equal."""
    magnitude, index = jax.lax.top_k(jnp.abs(z), slots)
    used = magnitude > threshold
    value = jnp.where(used, jnp.take_along_axis(z, index, axis=1), 0.0)
    return Outliers(
        position=bitpack.pack(jnp.where(used, index, 0), _index_bits(z.shape[-1])),
        value=to_f16(value),
    )


def restore(outliers: Outliers, z: Float[Array, "n L"]) -> Float[Array, "n L"]:
    """``z`` with the stored entries put in place."""
    length, slots = z.shape[-1], outliers.value.shape[-1]
    index = bitpack.unpack(outliers.position, _index_bits(length), slots)
    value = outliers.value.astype(jnp.float32)
    hit = (index[:, :, None] == jnp.arange(length)) & (value != 0)[:, :, None]
    return jnp.where(jnp.any(hit, axis=1), jnp.sum(jnp.where(hit, value[:, :, None], 0.0), axis=1), z)


def _index_bits(length: int) -> int:
    return max(1, (length - 1).bit_length())

"""Codes of 2 and 4 bits packed so that a mask makes pairs of small floats of them: keys of ``kivi`` as kernels read
them.

In a word of 32 bits, code ``2 j`` is field ``j`` of the lower half and code ``2 j + 1`` field ``j`` of the upper half.
A field in the lowest ten bits of a half is, beside the exponent bits of 1024, a float16: ``1024 + code 2**(bits j)``.
"""

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, Int, UInt8


def pack(codes: Int[Array, "*batch n"], bits: int) -> UInt8[Array, "*batch packed"]:
    """Packs the last axis of ``codes``, each in ``[0, 2**bits)``, into ``ceil(n bits / 8)`` bytes.

    Unless ``n`` is a multiple of ``32 / bits``, fields are in the order of ``bitpack``.
    """
    return bitpack.pack(bitpack.swapped(codes, 16 // bits, 2), bits)


def unpack(packed: UInt8[Array, "*batch packed"], bits: int, count: int) -> Int[Array, "*batch count"]:
    """The ``count`` codes that ``pack`` put there, as int32.

    Raises:
        ValueError: the last axis is not ``ceil(count bits / 8)`` long.
    """
    return bitpack.swapped(bitpack.unpack(packed, bits, count), 2, 16 // bits)

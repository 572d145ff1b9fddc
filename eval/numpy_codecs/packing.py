"""Bits of small integers, with numpy's own packing."""

import numpy as np


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """The last axis of integers below ``2**bits`` (at most 10 bits) as bytes, least significant bit first."""
    if bits <= 8:
        planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1, count=bits, bitorder="little")
    else:
        planes = ((values[..., None] >> np.arange(bits)) & 1).astype(np.uint8)
    return np.packbits(planes.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The ``count`` integers of the last axis."""
    planes = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    return planes.reshape(*packed.shape[:-1], count, bits).astype(np.int32) @ (1 << np.arange(bits))

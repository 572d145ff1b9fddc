"""Exact keys that are stored before their rotary embedding, turned by it as they are read.

Cosines and sines are a program's own: as arrays they would be a launch before every step, as long as it takes to start
one, and twice the bytes of the keys.
"""

import math
from typing import Any

import numpy as np

from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC

_TURN = float(np.float32(2 * math.pi))
"""In radians, as a float, and"""

_REST = 2 * math.pi - _TURN
"""what that leaves out."""


def turned(ops: Any, key: list[Any], frequencies: list[Any], position: Any) -> list[Any]:
    """Some channels of the first half of a key and the same of the second, rotated by where the key is.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        key: the channels, as floats.
        frequencies: of the channels of a half, radians a token.
        position: an integer.
    """
    width, place = len(frequencies), ops.converted(position)
    near, far = [], []
    for first, second, frequency in zip(key[:width], key[width:], frequencies, strict=True):
        angle = within_half_a_turn(ops, ops.scaled(place, frequency))
        cos, sin = ops.cosine(angle), ops.sine(angle)
        near.append(ops.minus(ops.scaled(first, cos), ops.scaled(second, sin)))
        far.append(ops.fused(second, cos, ops.scaled(first, sin)))
    return near + far


def within_half_a_turn(ops: Any, angle: Any) -> Any:
    """An angle less whole turns, to 2^-22 radians, if they are fewer than 2^22.

    What is subtracted first is a multiple of 2^-21, and so is what is left, a number below 4: nothing is rounded. The
    angle itself is a float, as ``apply_rope`` has it.
    """
    turns = ops.minus(ops.fused(angle, ops.real(1 / (2 * math.pi)), ops.real(MAGIC)), ops.real(MAGIC))
    return ops.fused(turns, ops.real(-_REST), ops.fused(turns, ops.real(-_TURN), angle))

"""Packed codes to float16 in registers: levels are looked up byte by byte (``code_bytes`` for their places)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.pallas_kernels.attention.code_bytes import places_of, signed_quads
from kakeya_jax.typing import Array, Float, Int

WORDS = 4
"""Of a table of levels."""


_TRIED = 4096


@functools.lru_cache
def half_unit(levels: tuple[float, ...]) -> float:
    """The unit between 1/2 and 1 in which levels lose least as float16."""
    units = np.linspace(0.5, 1.0, _TRIED, endpoint=False)
    scaled = np.asarray(levels) / units[:, None]
    lost = (scaled.astype(np.float16) - scaled) * units[:, None]
    return float(units[np.argmin(np.sum(np.square(lost), axis=1))])


def level_words(levels: Float[Array, " levels"]) -> Int[Array, " words"]:
    """Lower and then higher bytes of 4 or 8 levels as float16, four to an int32; of 16, which are symmetric, those
    below 0, nearest first."""
    used = levels[7::-1] if len(levels) == 16 else levels
    halves = jax.lax.bitcast_convert_type(used.astype(jnp.float16), jnp.uint16).astype(jnp.uint32)
    pieces = jnp.concatenate([halves & 255, halves >> 8]).reshape(-1, 4)
    words = jnp.sum(pieces << 8 * jnp.arange(4, dtype=jnp.uint32), axis=1, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(jnp.pad(words, (0, WORDS - len(words))), jnp.int32)


def decode_halves(ops: Any, unit: list[Any], bits: int, table: list[Any]) -> list[tuple[Any, Any]]:
    """16 codes of 2, 3 or 4 bits as four pairs of packed float16; ``table`` is ``level_words`` in registers."""
    if bits == 4:
        flip = ops.integer(0x80808080)
        quads = [
            (
                ops.permute_bytes(*table[:2], place),
                ops.differing(ops.permute_bytes(*table[2:], place), ops.both(sign, flip)),
            )
            for place, sign in signed_quads(ops, unit)
        ]
    elif bits == 3:
        quads = [
            (ops.permute_bytes(*table[:2], place), ops.permute_bytes(*table[2:], place))
            for place in places_of(ops, unit, bits)
        ]
    else:
        upper = ops.integer(0x4444)
        quads = [
            (ops.permute_bytes(*table[:2], place), ops.permute_bytes(*table[:2], ops.either(place, upper)))
            for place in places_of(ops, unit, bits)
        ]
    first, second = ops.integer(0x5140), ops.integer(0x7362)
    return [(ops.permute_bytes(low, high, first), ops.permute_bytes(low, high, second)) for low, high in quads]

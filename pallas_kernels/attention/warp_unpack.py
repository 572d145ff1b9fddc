"""Packed indices to packed float16 levels, in registers.

A word holds two halves of ``16 / bits`` indices each, the first lowest. Plane ``i`` of a word is index ``i`` of both
halves: one masked word is two float16 numbers ``1024 + 2 i``, and one fused multiply-add makes them
``u = (2 i - (L - 1)) / L`` without rounding.
"""

from jaxlib.mlir.dialects import arith

from kakeya_jax.pallas_kernels.attention import warp_ops
from kakeya_jax.pallas_kernels.attention.packed_format import Format
from kakeya_jax.pallas_kernels.attention.ptx_halves import pair, polynomial
from kakeya_jax.pallas_kernels.attention.warp_ops import Register


def unpack_word(word: Register, stored: Format) -> list[Register]:
    """The levels of every plane of a word over ``stored.unit``, packed halves."""
    planes = 16 // stored.bits
    low = arith.shli(word, warp_ops.integer(1))
    high = arith.shrui(word, warp_ops.integer(7))
    source = [(low, stored.bits * plane) for plane in range(planes // 2)]
    source += [(high, stored.bits * plane) for plane in range(planes // 2)]
    return [_level(each, shift, stored) for each, shift in source]


def _level(word: Register, shift: int, stored: Format) -> Register:
    """The levels of the indices at bit ``shift + 1`` of both halves."""
    count = 1 << stored.bits
    scale, offset = 1.0 / (count << shift), -((1024 >> shift) + count - 1) / count
    constants = [scale, offset, *stored.ratios]
    names = [f"c{index}" for index in range(len(constants))]
    lines = [
        f".reg .b32 t, u, s, {', '.join(names)};",
        *(f"mov.b32 {name}, {pair(value)};" for name, value in zip(names, constants, strict=True)),
        f"lop3.b32 t, $1, {(2 * (count - 1) << shift) * 0x10001:#x}, 0x64006400, 0xEA;",
        f"fma.rn.f16x2 u, t, {names[0]}, {names[1]};",
        *polynomial(names[2:], "$0"),
    ]
    return warp_ops.asm("{ " + " ".join(lines) + " }", word, results=warp_ops.i32())

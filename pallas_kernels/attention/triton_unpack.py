"""Packed indices to float16 levels inside a Triton kernel, four bytes at a time.

A byte holds ``8 / bits`` indices, the first in its lowest bits; *plane* ``p`` of a row of bytes is index ``p`` of every
byte. So unpacking keeps the shape of its tile, and no value moves between threads.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.pallas_kernels.attention.packed_format import Format
from kakeya_jax.pallas_kernels.attention.ptx_halves import pair, polynomial
from kakeya_jax.typing import Array, Float, UInt8


def unpack_plane(words: UInt8[Array, "t w"], plane: int, stored: Format, *, interpret: bool) -> Float[Array, "t w"]:
    """Levels of one plane over ``stored.unit``, float16.

    Args:
        words: packed indices.
        plane: which index of every byte.
        stored: their format.
        interpret: plain operations instead of assembly, for machines without a GPU.
    """
    if interpret:
        return _plain(words, plane, stored)
    return plgpu.elementwise_inline_asm(
        _assembly(plane, stored),
        args=[words],
        constraints="=r,=r,r",
        pack=4,
        result_shape_dtypes=[jax.ShapeDtypeStruct(words.shape, jnp.float16)],
    )[0]


def _plain(words: Array, plane: int, stored: Format) -> Array:
    count = 1 << stored.bits
    index = (words.astype(jnp.int32) >> (plane * stored.bits)) & (count - 1)
    u = ((2 * index - count + 1).astype(jnp.float32) / count).astype(jnp.float16)
    if not stored.ratios:
        return u
    square = u * u
    total = jnp.full_like(u, stored.ratios[-1])
    for each in stored.ratios[-2::-1]:
        total = total * square + jnp.float16(each)
    return (u * square) * total + u


def _assembly(plane: int, stored: Format) -> str:
    """Two registers of two halves each from one register of four bytes.

    An index ``i`` shifted to bits 1 and up of a half that reads 1024 makes it ``1024 + 2 i``; one fused multiply-add
    turns that into ``u = (2 i - (L - 1)) / L`` without rounding.
    """
    count = 1 << stored.bits
    shift = "shl.b32 w, $2, 1;" if plane == 0 else f"shr.u32 w, $2, {plane * stored.bits - 1};"
    constants = [1 / count, -(1024 + count - 1) / count, *stored.ratios]
    names = [f"c{index}" for index in range(len(constants))]
    lines = [f".reg .b32 w, t, u, s, {', '.join(names)};", shift]
    # PTX takes no immediate for packed halves: each constant gets a register.
    lines += [f"mov.b32 {name}, {pair(value)};" for name, value in zip(names, constants, strict=True)]
    for register, selector in enumerate((0x4140, 0x4342)):
        lines += [
            f"prmt.b32 t, w, 0, {selector:#x};",
            f"lop3.b32 t, t, {2 * (count - 1) * 0x10001:#x}, 0x64006400, 0xEA;",
            f"fma.rn.f16x2 u, t, {names[0]}, {names[1]};",
            *polynomial(names[2:], f"${register}"),
        ]
    return "{ " + " ".join(lines) + " }"

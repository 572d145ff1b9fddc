"""Packed codes to float16 levels inside a Triton kernel, four bytes at a time.

A byte holds ``8 / bits`` codes; *plane* ``p`` of a row of bytes is code ``p`` of every byte, lowest bits first. So
unpacking keeps the shape of its tile, and no value moves between threads. ``code_words`` says which index of a vector
a plane's code is, and that codes of 4 bits are sign and magnitude.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.pallas_kernels.attention.code_bytes import table_words
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.typing import Array, Float, UInt8

_MARK = 0x64646464
"""The higher bytes of float16 numbers from 1024 on, whose lower byte is what they have beyond it."""


def planes(codes: Codes) -> int:
    """Codes in a byte."""
    return 8 // codes.bits


def plane_order(count: int, codes: Codes) -> np.ndarray:
    """Which of ``count`` values are in each plane, byte after byte: ``[planes, count / planes]``."""
    byte = np.arange(count // planes(codes), dtype=np.int32)
    return np.stack([place(byte, plane, codes) for plane in range(planes(codes))])


def place(byte: Array | np.ndarray, plane: int, codes: Codes):
    """Which value of a vector is in a plane of a byte."""
    if codes.bits == 4:
        return 2 * byte + plane
    return 16 * (byte // 4) + 2 * (byte % 4) + (0, 8, 1, 9)[plane]


def unpack_plane(words: UInt8[Array, "t w"], plane: int, codes: Codes, *, interpret: bool) -> Float[Array, "t w"]:
    """Levels of one plane over their unit, ``byte + 1/2``: float16, exact.

    Args:
        words: packed codes.
        plane: which code of every byte.
        codes: of 2 or 4 bits.
        interpret: plain operations instead of assembly, for machines without a GPU.
    """
    if interpret:
        return _plain(words, plane, codes)
    return plgpu.elementwise_inline_asm(
        _assembly(plane, codes),
        args=[words],
        constraints="=r,=r,r",
        pack=4,
        result_shape_dtypes=[jax.ShapeDtypeStruct(words.shape, jnp.float16)],
    )[0]


def _plain(words: Array, plane: int, codes: Codes) -> Array:
    count = 1 << codes.bits
    index = (words.astype(jnp.int32) >> (plane * codes.bits)) & (count - 1)
    if codes.bits == 4:
        index = jnp.where(index < 8, index ^ 7, index)
    level = jnp.zeros(words.shape, jnp.float32)
    for each, byte in enumerate(codes.table):  # kernels take no array constants
        level = jnp.where(index == each, byte + 0.5, level)
    return level.astype(jnp.float16)


def _assembly(plane: int, codes: Codes) -> str:
    """Two registers of two halves each from one register of four bytes: a lookup of four bytes in one permutation."""
    mask = (1 << codes.bits) - 1
    table = table_words(codes.table[7::-1] if codes.bits == 4 else codes.table)
    lines = [
        ".reg .b32 v, t, s, m;",
        f"shr.u32 v, $2, {plane * codes.bits};",
        f"and.b32 v, v, {mask * 0x01010101:#x};",
        "shr.u32 t, v, 4;",  # codes in neighbouring nibbles select
        "or.b32 t, t, v;",
        "prmt.b32 s, t, 0, 0x4420;",
    ]
    if codes.bits == 4:
        lines += [
            "and.b32 s, s, 0x7777;",
            f"prmt.b32 t, {table[0]:#x}, {table[1]:#x}, s;",
            "shl.b32 v, v, 4;",
            "prmt.b32 m, v, 0, 0xBA98;",  # the sign of every code, in all bits of its byte
            "xor.b32 t, t, m;",
        ]
    else:
        lines.append(f"prmt.b32 t, {table[0]:#x}, {table[0]:#x}, s;")
    lines += ["xor.b32 t, t, 0x80808080;", ".reg .b32 c, h;", "mov.b32 c, 0xE480E480;", "mov.b32 h, 0x38003800;"]
    for register, selector in enumerate((0x4140, 0x4342)):
        lines += [
            f"prmt.b32 s, t, {_MARK:#x}, {selector:#x};",
            "add.rn.f16x2 s, s, c;",  # minus 1152
            f"add.rn.f16x2 ${register}, s, h;",  # and a half
        ]
    return "{ " + " ".join(lines) + " }"

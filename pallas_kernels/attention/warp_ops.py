"""What one thread of a warp does, as MLIR: the few instructions that decode attention from packed codes is made of.

Mosaic GPU's own arrays are spread over a warpgroup in layouts that it chooses. Here every thread owns named registers,
as in the fragments of ``mma.sync``, so that codes go from a load straight into a product. Registers hold ``i32``
(integers, or two packed halves) or ``f32``.
"""

from collections.abc import Sequence
from typing import Any

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, scf

Register = Any
"""An ``ir.Value`` of one element."""


def i32() -> ir.Type:
    """32-bit integers, or two packed halves."""
    return ir.IntegerType.get_signless(32)


def f32() -> ir.Type:
    """Single precision."""
    return ir.F32Type.get()


def integer(value: int) -> Register:
    """A constant."""
    return arith.constant(i32(), value if value < 1 << 31 else value - (1 << 32))


def real(value: float) -> Register:
    """A constant."""
    return arith.constant(f32(), value)


def asm(text: str, *arguments: Register, results: Sequence[ir.Type] | ir.Type, convergent: bool = False) -> Any:
    """PTX without side effects; ``$0`` and up are the results, then the arguments."""
    return utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]  (from jax 0.11 on)
        text, *arguments, result_types=results, convergent=convergent
    )


def address(ref: Any, byte_offset: Register) -> Register:
    """The global address of a reference plus a 32- or 64-bit number of bytes."""
    i64 = ir.IntegerType.get_signless(64)
    if byte_offset.type != i64:
        byte_offset = arith.extsi(i64, byte_offset)
    return arith.addi(llvm.ptrtoint(i64, utils.memref_ptr(ref)), byte_offset)


def load_words(where: Register, count: int, offset: int = 0) -> list[Register]:
    """1, 2 or 4 consecutive words that are read once: past the first-level cache."""
    vector = "" if count == 1 else f".v{count}"
    targets = ", ".join(f"${index}" for index in range(count))
    targets = targets if count == 1 else f"{{{targets}}}"
    text = f"ld.global.nc.L1::no_allocate{vector}.b32 {targets}, [${count}+{offset}];"
    found = asm(text, where, results=[i32()] * count)
    return list(found)


def load_reals(where: Register, count: int, offset: int = 0) -> list[Register]:
    """1, 2 or 4 consecutive floats."""
    return [arith.bitcast(f32(), word) for word in load_words(where, count, offset)]


def store_reals(where: Register, values: Sequence[Register], offset: int = 0) -> None:
    """1, 2 or 4 consecutive floats."""
    count = len(values)
    vector = "" if count == 1 else f".v{count}"
    sources = ", ".join(f"${index + 1}" for index in range(count))
    sources = sources if count == 1 else f"{{{sources}}}"
    text = f"st.global{vector}.f32 [$0+{offset}], {sources};"
    utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
        text, where, *values, has_side_effects=True
    )


def permute_bytes(low: Register, high: Register, selector: Register) -> Register:
    """Four of the eight bytes of two words, by the nibbles of ``selector``."""
    return asm("prmt.b32 $0, $1, $2, $3;", low, high, selector, results=i32())


def half_of(word: Register, upper: bool) -> Register:
    """One of two packed halves as a float."""
    names = "_, h" if upper else "h, _"
    return asm(f"{{ .reg .b16 h; mov.b32 {{{names}}}, $1; cvt.f32.f16 $0, h; }}", word, results=f32())


def largest_half(words: Sequence[Register]) -> Register:
    """The largest of all packed halves as a float."""
    largest = words[0]
    for word in words[1:]:
        largest = asm("max.f16x2 $0, $1, $2;", largest, word, results=i32())
    return maximum(half_of(largest, upper=False), half_of(largest, upper=True))


def pack_halves(low: Register, high: Register) -> Register:
    """Two floats rounded to packed halves."""
    return asm("cvt.rn.f16x2.f32 $0, $2, $1;", low, high, results=i32())


def maximum(first: Register, second: Register) -> Register:
    """The larger float."""
    return asm("max.f32 $0, $1, $2;", first, second, results=f32())


def power_of_two(value: Register) -> Register:
    """``2**value``, to about two units in the last place."""
    return asm("ex2.approx.ftz.f32 $0, $1;", value, results=f32())


def exchange(value: Register, distance: int) -> Register:
    """The float of the lane whose number differs in the bit ``distance``."""
    return asm(f"shfl.sync.bfly.b32 $0, $1, {distance}, 31, -1;", value, results=f32(), convergent=True)


def any_lane(condition: Register) -> Register:
    """Whether a condition holds in any lane of the warp."""
    text = "{ .reg .pred p, q; setp.ne.s32 p, $1, 0; vote.sync.any.pred q, p, -1; selp.s32 $0, 1, 0, q; }"
    found = asm(text, arith.extui(i32(), condition), results=i32(), convergent=True)
    return arith.cmpi(arith.CmpIPredicate.ne, found, integer(0))


def transpose(word: Register) -> Register:
    """The transpose of an 8 x 8 matrix of halves of which each lane holds two neighbours of a row."""
    return asm("movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", word, results=i32(), convergent=True)


def multiply(total: Sequence[Register], left: Sequence[Register], right: Sequence[Register]) -> list[Register]:
    """``total + left @ right`` of fragments 16 x 16 and 16 x 8 of halves, in float32 (``mma.sync``)."""
    text = (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, "
        "{$10, $11, $12, $13};"
    )
    return list(asm(text, *left, *right, *total, results=[f32()] * 4, convergent=True))


def loop(start: Register, stop: Register, step: Register, carried: Sequence[Register], body: Any) -> list[Register]:
    """``for index in range(start, stop, step): carried = body(index, carried)``."""
    op: Any = scf.ForOp(start, stop, step, list(carried))
    with ir.InsertionPoint(op.body):
        scf.YieldOp(body(op.induction_variable, list(op.inner_iter_args)))
    return list(op.results)


def choose(condition: Register, when_true: Any, when_false: Sequence[Register]) -> list[Register]:
    """``when_true()`` if the condition holds, which it does for all lanes or none; else ``when_false``."""
    types = [each.type for each in when_false]
    op: Any = scf.IfOp(condition, types, has_else=True)
    with ir.InsertionPoint(op.then_block):
        scf.YieldOp(when_true())
    with ir.InsertionPoint(op.else_block):
        scf.YieldOp(list(when_false))
    return list(op.results)

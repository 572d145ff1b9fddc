"""What one thread of a warp does, as MLIR: the few instructions that decode attention over packed codes is made of.

Mosaic GPU's own arrays are spread over a warpgroup in layouts that it chooses. Here every thread owns named registers,
as in the fragments of ``mma.sync``, so that codes go from a load straight into a product. Registers hold ``i32``
(integers, four bytes, or two packed halves) or ``f32``. A program written against these functions also runs in numpy:
``emulated_ops`` has the same ones.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, scf

Register = Any
"""An ``ir.Value`` of one element."""


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _i64() -> ir.Type:
    return ir.IntegerType.get_signless(64)


def _f32() -> ir.Type:
    return ir.F32Type.get()


def _asm(text: str, *arguments: Register, results: Sequence[ir.Type] | ir.Type | None, collective: bool = False) -> Any:
    """PTX; ``$0`` and up are the results, then the arguments. Without results it has side effects."""
    return utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]  (from jax 0.11 on)
        text, *arguments, result_types=results, has_side_effects=results is None, convergent=collective
    )


# Constants and indices


def integer(value: int) -> Register:
    """A constant."""
    return arith.constant(_i32(), value if value < 1 << 31 else value - (1 << 32))


def real(value: float) -> Register:
    """A constant."""
    return arith.constant(_f32(), value)


def thread_index() -> Register:
    """This thread's number in its program."""
    return arith.index_cast(_i32(), gpu.thread_id(gpu.Dimension.x))


def program_index() -> Register:
    """The program's number."""
    return arith.index_cast(_i32(), gpu.block_id(gpu.Dimension.x))


def teams() -> int:
    """Programs of a block of threads: see ``team_ops``."""
    return 1


# Integers


def add(first: Register, second: Register) -> Register:
    """Modulo 2^32."""
    return arith.addi(first, second)


def subtract(first: Register, second: Register) -> Register:
    """Modulo 2^32."""
    return arith.subi(first, second)


def times(value: Register, factor: int) -> Register:
    """Modulo 2^32."""
    return arith.muli(value, integer(factor))


def divide(value: Register, divisor: int) -> Register:
    """Rounded down, of an unsigned number."""
    return arith.divui(value, integer(divisor))


def modulo(value: Register, divisor: int) -> Register:
    """Of an unsigned number."""
    return arith.remui(value, integer(divisor))


def product(first: Register, second: Register) -> Register:
    """Modulo 2^32."""
    return arith.muli(first, second)


def smaller(first: Register, second: Register) -> Register:
    """The minimum of two signed integers."""
    return arith.minsi(first, second)


def larger(first: Register, second: Register) -> Register:
    """The maximum of two signed integers."""
    return arith.maxsi(first, second)


def both(first: Register, second: Register) -> Register:
    """Bitwise and."""
    return arith.andi(first, second)


def either(first: Register, second: Register) -> Register:
    """Bitwise or."""
    return arith.ori(first, second)


def differing(first: Register, second: Register) -> Register:
    """Bitwise exclusive or."""
    return arith.xori(first, second)


def masked(value: Register, mask: Register, others: Register) -> Register:
    """``value & mask | others`` in one instruction."""
    return _asm("lop3.b32 $0, $1, $2, $3, 0xEA;", value, mask, others, results=_i32())


def left(value: Register, bits: int) -> Register:
    """Shifted left."""
    return arith.shli(value, integer(bits))


def right(value: Register, bits: int) -> Register:
    """Shifted right, zeros coming in."""
    return arith.shrui(value, integer(bits))


def shifted_left(value: Register, bits: Register) -> Register:
    """Shifted left; nothing is left of a shift by 32 bits or more."""
    return _asm("shl.b32 $0, $1, $2;", value, bits, results=_i32())


def shifted_right(value: Register, bits: Register) -> Register:
    """Shifted right by less than 32 bits, zeros coming in."""
    return arith.shrui(value, bits)


def right_of_two(low: Register, high: Register, bits: int) -> Register:
    """The lower word of two, shifted right together by less than 32 bits."""
    return _asm(f"shf.r.wrap.b32 $0, $1, $2, {bits};", low, high, results=_i32())


def right_signed(value: Register, bits: int) -> Register:
    """Shifted right, the sign coming in."""
    return arith.shrsi(value, integer(bits))


def permute_bytes(low: Register, high: Register, selector: Register) -> Register:
    """Four of the eight bytes of two words, by the four lowest nibbles of ``selector``; a nibble of 8 or more repeats
    the highest bit of its byte."""
    return _asm("prmt.b32 $0, $1, $2, $3;", low, high, selector, results=_i32())


# Floating point


def plus(first: Register, second: Register) -> Register:
    """A sum of floats."""
    return arith.addf(first, second)


def minus(first: Register, second: Register) -> Register:
    """A difference of floats."""
    return arith.subf(first, second)


def scaled(first: Register, second: Register) -> Register:
    """A product of floats."""
    return arith.mulf(first, second)


def nearest(value: Register) -> Register:
    """The nearest integer to a float, ties to even."""
    return _asm("cvt.rni.s32.f32 $0, $1;", value, results=_i32())


def converted(value: Register) -> Register:
    """A signed integer as a float."""
    return arith.sitofp(_f32(), value)


def magnitude(value: Register) -> Register:
    """Without its sign."""
    return _asm("abs.f32 $0, $1;", value, results=_f32())


def fused(first: Register, second: Register, third: Register) -> Register:
    """``first * second + third``, rounded once."""
    return _asm("fma.rn.f32 $0, $1, $2, $3;", first, second, third, results=_f32())


def maximum(first: Register, second: Register) -> Register:
    """The larger float."""
    return _asm("max.f32 $0, $1, $2;", first, second, results=_f32())


def power_of_two(value: Register) -> Register:
    """``2**value``, to about two units in the last place."""
    return _asm("ex2.approx.ftz.f32 $0, $1;", value, results=_f32())


def reciprocal(value: Register) -> Register:
    """``1 / value``, to about one unit in the last place."""
    return _asm("rcp.approx.ftz.f32 $0, $1;", value, results=_f32())


def square_root(value: Register) -> Register:
    """To about one unit in the last place."""
    return _asm("sqrt.approx.ftz.f32 $0, $1;", value, results=_f32())


def cosine(angle: Register) -> Register:
    """Of an angle of at most a turn in size, to about 2^-20."""
    return _asm("cos.approx.ftz.f32 $0, $1;", angle, results=_f32())


def sine(angle: Register) -> Register:
    """Of an angle of at most a turn in size, to about 2^-20."""
    return _asm("sin.approx.ftz.f32 $0, $1;", angle, results=_f32())


def as_real(value: Register) -> Register:
    """The same bits as a float."""
    return arith.bitcast(_f32(), value)


def as_integer(value: Register) -> Register:
    """The same bits as an integer."""
    return arith.bitcast(_i32(), value)


def half_of(word: Register, upper: bool) -> Register:
    """One of two packed float16 as a float."""
    names = "_, h" if upper else "h, _"
    return _asm(f"{{ .reg .b16 h; mov.b32 {{{names}}}, $1; cvt.f32.f16 $0, h; }}", word, results=_f32())


def brain_half_of(word: Register, upper: bool) -> Register:
    """One of two packed bfloat16 as a float."""
    return as_real(both(word, integer(0xFFFF0000)) if upper else left(word, 16))


def largest_half(words: Sequence[Register]) -> Register:
    """The largest of all packed float16 as a float."""
    largest = functools.reduce(larger_halves, words)
    return maximum(half_of(largest, upper=False), half_of(largest, upper=True))


def larger_halves(first: Register, second: Register) -> Register:
    """The maxima of two pairs of packed float16."""
    return _asm("max.f16x2 $0, $1, $2;", first, second, results=_i32())


def scaled_halves(first: Register, second: Register) -> Register:
    """The products of two pairs of packed float16; small ones are not flushed."""
    return _asm("mul.rn.f16x2 $0, $1, $2;", first, second, results=_i32())


def fused_halves(first: Register, second: Register, third: Register) -> Register:
    """``first * second + third`` of pairs of packed float16, rounded once."""
    return _asm("fma.rn.f16x2 $0, $1, $2, $3;", first, second, third, results=_i32())


def negative_halves(value: Register) -> Register:
    """A pair of packed float16 with the other signs."""
    return _asm("neg.f16x2 $0, $1;", value, results=_i32())


def pack_brain_halves(low: Register, high: Register) -> Register:
    """Two floats rounded to packed bfloat16."""
    return _asm("cvt.rn.bf16x2.f32 $0, $2, $1;", low, high, results=_i32())


def pack_halves(low: Register, high: Register) -> Register:
    """Two floats rounded to packed float16."""
    return _asm("cvt.rn.f16x2.f32 $0, $2, $1;", low, high, results=_i32())


def halves_of_e4m3(word: Register) -> list[Register]:
    """The four packed e4m3 of a word as two pairs of packed float16, exactly."""
    text = (
        "{ .reg .b16 low, high; mov.b32 {low, high}, $2; cvt.rn.f16x2.e4m3x2 $0, low; cvt.rn.f16x2.e4m3x2 $1, high; }"
    )
    return list(_asm(text, word, results=[_i32()] * 2))


# Time


def clock() -> Register:
    """The lower 32 bits of the GPU's nanoseconds."""
    text = "{ .reg .b64 t; mov.u64 t, %globaltimer; cvt.u32.u64 $0, t; }"
    return utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
        text, result_types=_i32(), has_side_effects=True
    )


def mark(place: str, here: Callable[[], Register] | None = None) -> None:
    """Where a warp is (``stamps``), if it is ``here``: nothing is done about it."""
    del place, here


# The warp


def uniform(value: Register) -> Register:
    """The integer of the warp's first lane: what the compiler then knows to be equal for all."""
    return _asm("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", value, results=_i32(), collective=True)


def exchange(value: Register, distance: int) -> Register:
    """The float of the lane whose number differs in the bit ``distance``."""
    return _asm(f"shfl.sync.bfly.b32 $0, $1, {distance}, 31, -1;", value, results=_f32(), collective=True)


def above(first: Register, second: Register) -> Register:
    """A condition on floats: ``first > second``."""
    return arith.cmpf(arith.CmpFPredicate.OGT, first, second)


def less(first: Register, second: Register) -> Register:
    """A condition on signed integers: ``first < second``."""
    return arith.cmpi(arith.CmpIPredicate.slt, first, second)


def equal(value: Register, number: int) -> Register:
    """A condition: an integer is this number."""
    return arith.cmpi(arith.CmpIPredicate.eq, value, integer(number))


def one_of(first: Register, second: Register) -> Register:
    """Whether one of two conditions holds."""
    return arith.ori(first, second)


def select(condition: Register, when_true: Register, when_false: Register) -> Register:
    """A register by a condition."""
    return arith.select(condition, when_true, when_false)


def select_address(condition: Register, when_true: Register, when_false: Register) -> Register:
    """A global address by a condition."""
    return arith.select(condition, when_true, when_false)


def any_lane(condition: Register) -> Register:
    """Whether a condition holds in any lane of the warp."""
    text = "{ .reg .pred p, q; setp.ne.s32 p, $1, 0; vote.sync.any.pred q, p, -1; selp.s32 $0, 1, 0, q; }"
    found = _asm(text, arith.extui(_i32(), condition), results=_i32(), collective=True)
    return arith.cmpi(arith.CmpIPredicate.ne, found, integer(0))


def transpose(word: Register) -> Register:
    """The transpose of an 8 x 8 matrix of halves of which each lane holds two neighbours of a row."""
    return _asm("movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", word, results=_i32(), collective=True)


def multiply_bytes(total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]) -> list[Register]:
    """``total + first @ second`` of fragments 16 x 32 and 32 x 8 of signed bytes, in int32 (``mma.sync``)."""
    text = (
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, "
        "{$10, $11, $12, $13};"
    )
    return list(_asm(text, *first, *second, *total, results=[_i32()] * 4, collective=True))


def dot_bytes(first: Register, second: Register, total: Register) -> Register:
    """``total`` plus the products of the four signed bytes of two words."""
    return _asm("dp4a.s32.s32 $0, $1, $2, $3;", first, second, total, results=_i32())


def multiply_half_bytes(total: Sequence[Register], first: Sequence[Register], second: Register) -> list[Register]:
    """``total + first @ second`` of fragments 16 x 16 and 16 x 8 of signed bytes, in int32 (``mma.sync``)."""
    text = "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {$0, $1, $2, $3}, {$4, $5}, {$6}, {$7, $8, $9, $10};"
    return list(_asm(text, *first, second, *total, results=[_i32()] * 4, collective=True))


def multiply_halves(total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]) -> list[Register]:
    """``total + first @ second`` of fragments 16 x 16 and 16 x 8 of float16, in float32 (``mma.sync``)."""
    text = (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, "
        "{$10, $11, $12, $13};"
    )
    return list(_asm(text, *first, *second, *total, results=[_f32()] * 4, collective=True))


def multiply_brain_halves(
    total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]
) -> list[Register]:
    """``total + first @ second`` of fragments 16 x 16 and 16 x 8 of bfloat16, in float32 (``mma.sync``)."""
    text = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, "
        "{$10, $11, $12, $13};"
    )
    return list(_asm(text, *first, *second, *total, results=[_f32()] * 4, collective=True))


def multiply_eight_halves(
    total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]
) -> list[Register]:
    """``total + first @ second`` of fragments 16 x 8 and 8 x 8 of float16, in float32 (``mma.sync``)."""
    text = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {$0, $1, $2, $3}, {$4, $5}, {$6}, {$7, $8, $9, $10};"
    return list(_asm(text, *first, *second, *total, results=[_f32()] * 4, collective=True))


# Memory


def address(ref: Any) -> Register:
    """Where a global array begins."""
    return llvm.ptrtoint(_i64(), utils.memref_ptr(ref))


def offset(where: Register, nbytes: Register, count: int = 1) -> Register:
    """An address ``nbytes * count`` bytes further; the product does not overflow."""
    wide = arith.extsi(_i64(), nbytes)
    if count != 1:
        wide = arith.muli(wide, arith.constant(_i64(), count))
    return arith.addi(where, wide)


def offset_product(where: Register, nbytes: Register, count: Register) -> Register:
    """An address ``nbytes * count`` bytes further, neither negative."""
    return arith.addi(where, arith.muli(arith.extui(_i64(), nbytes), arith.extui(_i64(), count)))


def load_words(where: Register, count: int, at: int = 0, *, once: bool = True, pinned: bool = False) -> list[Register]:
    """1, 2 or 4 consecutive words, ``at`` bytes from ``where``; those read ``once`` stay out of the first-level cache.

    If ``pinned``, they are under way here, not where they are needed: the compiler would load them behind copies, to
    wait for those.
    """
    if pinned:
        return _load("global", where, count, at, fresh=True)
    return _load("global.nc.L1::no_allocate" if once else "global.nc", where, count, at)


def load_short(where: Register, at: int = 0) -> Register:
    """16 bits of global memory, zeros above."""
    text = f"{{ .reg .b16 h; ld.global.nc.b16 h, [$1+{at}]; cvt.u32.u16 $0, h; }}"
    return _asm(text, where, results=_i32())


def prefetch(where: Register, at: int = 0) -> None:
    """Has the line of memory ``at`` bytes from ``where`` read into the second-level cache."""
    _asm(f"prefetch.global.L2 [$0+{at}];", where, results=None)


def load_reals(where: Register, count: int, at: int = 0, *, once: bool = False, pinned: bool = False) -> list[Register]:
    """1, 2 or 4 consecutive floats."""
    return [as_real(word) for word in load_words(where, count, at, once=once, pinned=pinned)]


def begin_loads() -> None:
    """Has all ``pinned`` loads so far under way."""
    _asm("bar.warp.sync -1;", results=None, collective=True)


def load_fresh(where: Register, count: int, at: int = 0) -> list[Register]:
    """1, 2 or 4 consecutive floats that another program of this launch wrote before this one learnt of it."""
    return [as_real(word) for word in _load("global.cg", where, count, at, fresh=True)]


def arrive(counter: Register, slot: Register, ops: Any = None) -> Register:
    """Adds one to a counter in global memory, once for the program, after all it wrote; returns what was there.

    Whoever finds the number of programs but one there sees what all of them wrote, with ``load_fresh``. ``slot`` is a
    word of shared memory that is free, and free again after a barrier. ``ops`` says what a program is, if not a whole
    block of threads.

    One thread releases what all wrote, and acquires what all read: barriers order theirs before and after (PTX ISA,
    memory consistency model: causality order). A fence of every warp takes a microsecond or two under load.
    """
    wait, thread = (barrier, thread_index()) if ops is None else (ops.barrier, ops.thread_index())
    wait()

    def count() -> None:
        found = utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
            "atom.acq_rel.gpu.global.add.u32 $0, [$1], 1;", counter, result_types=_i32(), has_side_effects=True
        )
        shared_store(slot, [as_real(found)])

    only_if(less(thread, integer(1)), count)
    wait()
    return as_integer(shared_load(slot, 1)[0])


def store_words(where: Register, values: Sequence[Register], at: int = 0) -> None:
    """1, 2 or 4 consecutive words."""
    _store("global", where, values, at)


def store_reals(where: Register, values: Sequence[Register], at: int = 0) -> None:
    """1, 2 or 4 consecutive floats."""
    store_words(where, [as_integer(value) for value in values], at)


def store_short(where: Register, value: Register, at: int = 0) -> None:
    """The lower 16 bits of a word."""
    text = f"{{ .reg .b16 h; cvt.u16.u32 h, $1; st.global.b16 [$0+{at}], h; }}"
    _asm(text, where, value, results=None)


def store_byte(where: Register, value: Register, at: int = 0) -> None:
    """The lower 8 bits of a word."""
    _asm(f"st.global.b8 [$0+{at}], $1;", where, value, results=None)


def shared_address(ref: Any) -> Register:
    """Where an array of shared memory begins."""
    return llvm.ptrtoint(_i32(), utils.memref_ptr(ref))


def shared_offset(where: Register, nbytes: Register) -> Register:
    """A shared address ``nbytes`` further."""
    return arith.addi(where, nbytes)


def copy(target: Register, source: Register, nbytes: int, to: int = 0, at: int = 0) -> None:
    """Starts copying 4, 8 or 16 bytes from global to shared memory, past the first-level cache if 16."""
    kind = "cg" if nbytes == 16 else "ca"
    _asm(f"cp.async.{kind}.shared.global [$0+{to}], [$1+{at}], {nbytes};", target, source, results=None)


def commit_copies() -> None:
    """Makes one group of the copies started since the last one."""
    _asm("cp.async.commit_group;", results=None)


def wait_for_copies(pending: int) -> None:
    """Waits until all but the latest ``pending`` groups are done, for all lanes of the warp."""
    _asm(f"cp.async.wait_group {pending}; bar.warp.sync -1;", results=None, collective=True)


def order_copies_out() -> None:
    """What this thread wrote to shared memory comes before copies out of it that start after a barrier."""
    _asm("fence.proxy.async.shared::cta;", results=None)


def copy_out(target: Register, source: Register, nbytes: Register) -> None:
    """Starts copying from shared to global memory, a multiple of 16 bytes; this thread does it all."""
    _asm("cp.async.bulk.global.shared::cta.bulk_group [$0], [$1], $2;", target, source, nbytes, results=None)


def commit_copies_out() -> None:
    """Makes a group of the copies out that this thread has started."""
    _asm("cp.async.bulk.commit_group;", results=None)


def wait_for_copies_out(*, read: bool = False) -> None:
    """Waits until all of this thread's groups are done, or until they have ``read`` what they copy."""
    _asm(f"cp.async.bulk.wait_group{'.read' if read else ''} 0;", results=None)


def shared_words(where: Register, count: int, at: int = 0, *, anew: bool = False) -> list[Register]:
    """1, 2 or 4 consecutive words of shared memory; not moved across a barrier. If ``anew``, they are loaded even where
    registers have them: one load, where the assembler would move each word."""
    return _load("volatile.shared" if anew else "shared", where, count, at, fresh=True)


def shared_short(where: Register, at: int = 0) -> Register:
    """16 bits of shared memory, zeros above."""
    text = f"{{ .reg .b16 h; ld.shared.b16 h, [$1+{at}]; cvt.u32.u16 $0, h; }}"
    return utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
        text, where, result_types=_i32(), has_side_effects=True
    )


def shared_byte(where: Register, at: int = 0) -> Register:
    """8 bits of shared memory as a signed integer."""
    text = f"ld.shared.s8 $0, [$1+{at}];"
    return utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
        text, where, result_types=_i32(), has_side_effects=True
    )


def shared_transposes(where: Register, at: int = 0) -> list[Register]:
    """The transposes of four 8 x 8 matrices of halves in shared memory; not moved across a barrier.

    Row ``r`` of matrix ``m`` is the 16 bytes ``at`` bytes from what lane ``8 m + r`` has as ``where``. Of each matrix a
    lane gets two neighbours of a row of its transpose, as of the word that ``transpose`` returns.
    """
    text = f"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{$0, $1, $2, $3}}, [$4+{at}];"
    found = utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
        text, where, result_types=[_i32()] * 4, has_side_effects=True, convergent=True
    )
    return list(found)


def shared_store(where: Register, values: Sequence[Register], at: int = 0) -> None:
    """1, 2 or 4 consecutive floats."""
    _store("shared", where, [as_integer(value) for value in values], at)


def shared_load(where: Register, count: int, at: int = 0) -> list[Register]:
    """1, 2 or 4 consecutive floats of shared memory; not moved across a barrier."""
    return [as_real(word) for word in shared_words(where, count, at)]


def barrier(name: Register | None = None, threads: int = 0) -> None:
    """Waits for all threads of the program; with a name, for so many that wait under it, whole warps."""
    if name is None:
        _asm("bar.sync 0;", results=None, collective=True)
    else:
        _asm(f"bar.sync $0, {threads};", name, results=None, collective=True)


def _load(space: str, where: Register, count: int, at: int, *, fresh: bool = False) -> list[Register]:
    """Words; if ``fresh``, not moved across what has side effects."""
    targets = ", ".join(f"${index}" for index in range(count))
    text = f"ld.{space}{_vector(count)}.b32 {targets if count == 1 else f'{{{targets}}}'}, [${count}+{at}];"
    found = utils.inline_ptx(  # pyright: ignore[reportAttributeAccessIssue]
        text, where, result_types=[_i32()] * count, has_side_effects=fresh
    )
    return list(found)


def _vector(count: int) -> str:
    return "" if count == 1 else f".v{count}"


def _store(space: str, where: Register, values: Sequence[Register], at: int) -> None:
    count = len(values)
    sources = ", ".join(f"${index + 1}" for index in range(count))
    sources = sources if count == 1 else f"{{{sources}}}"
    _asm(f"st.{space}{_vector(count)}.b32 [$0+{at}], {sources};", where, *values, results=None)


# Control


def loop(
    start: Register,
    stop: Register,
    carried: Sequence[Register],
    body: Callable[[Register, list[Register]], list[Register]],
    step: int = 1,
) -> list[Register]:
    """``for index in range(start, stop, step): carried = body(index, carried)``; equal for all lanes of a warp."""
    op: Any = scf.ForOp(start, stop, integer(step), list(carried))
    with ir.InsertionPoint(op.body):
        scf.YieldOp(body(op.induction_variable, list(op.inner_iter_args)))
    return list(op.results)


def choose(
    condition: Register, when_true: Callable[[], list[Register]], when_false: Sequence[Register]
) -> list[Register]:
    """``when_true()`` if the condition holds, which it does for all lanes or none; else ``when_false``."""
    types = [each.type for each in when_false]
    op: Any = scf.IfOp(condition, types, has_else=True)
    with ir.InsertionPoint(op.then_block):
        scf.YieldOp(when_true())
    with ir.InsertionPoint(op.else_block):
        scf.YieldOp(list(when_false))
    return list(op.results)


def choose_by(
    value: Register, cases: Mapping[int, Callable[[], list[Register]]], otherwise: Sequence[Register]
) -> list[Register]:
    """``cases[value]()``, or ``otherwise`` if there is none; the integer is equal for all lanes of a warp.

    Registers stay where they are, where one ``choose`` after the other would move them.
    """
    if not cases:
        return list(otherwise)
    (number, case), *rest = cases.items()
    op: Any = scf.IfOp(equal(value, number), [each.type for each in otherwise], has_else=True)
    with ir.InsertionPoint(op.then_block):
        scf.YieldOp(case())
    with ir.InsertionPoint(op.else_block):
        scf.YieldOp(choose_by(value, dict(rest), otherwise))
    return list(op.results)


def only_if(condition: Register, body: Callable[[], None]) -> None:
    """Runs ``body`` in the threads for which a condition holds."""
    op: Any = scf.IfOp(condition)
    with ir.InsertionPoint(op.then_block):
        body()
        scf.YieldOp([])

"""Runs programs written against ``warp_ops``: on the GPU through Mosaic GPU, or in numpy."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.pallas_kernels.attention import emulated_ops
from kakeya_jax.pallas_kernels.attention.stamps import with_stamps
from kakeya_jax.typing import Array


def launch(
    program: Callable[..., None],
    outputs: Sequence[jax.ShapeDtypeStruct],
    arguments: Sequence[Array],
    *,
    programs: int,
    warps: int,
    shared_floats: int,
    interpret: bool,
    teams: int = 1,
) -> tuple[Array, ...]:
    """The outputs of ``program(ops, *inputs, *outputs, shared memory)``.

    Args:
        program: of one thread of one program.
        outputs: what it writes.
        arguments: what it reads.
        programs: that run.
        warps: of each, a multiple of 4.
        shared_floats: of shared memory for each.
        interpret: in numpy, on any machine, instead of on the GPU.
        teams: programs that run as one block of threads, which bounds their registers (see ``team_ops``).
    """
    on_machine = _emulated if interpret else _mosaic

    def run(program: Callable[..., None], outputs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[Array, ...]:
        return on_machine(program, outputs, tuple(arguments), programs, warps, shared_floats, teams)

    return with_stamps(run, program, tuple(outputs), programs, warps)


def _mosaic(
    program: Callable[..., None],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    arguments: tuple[Array, ...],
    programs: int,
    warps: int,
    shared_floats: int,
    teams: int,
) -> tuple[Array, ...]:

    from jax.experimental.pallas import mosaic_gpu as plgpu  # from jax 0.11 on

    from kakeya_jax.pallas_kernels.attention import warp_ops
    from kakeya_jax.pallas_kernels.attention.team_ops import TeamOps

    def body(*refs: Any) -> None:
        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),) * len(refs), return_type=None)
        def inline(context: Any, *refs: Any) -> None:
            del context
            if teams == 1:
                program(warp_ops, *refs)
                return
            ops = TeamOps(teams, warps, 4 * shared_floats)
            real = ops.less(ops.program_index(), ops.integer(programs))
            ops.only_if(real, lambda: program(ops, *refs))

        inline(*refs)

    return plgpu.kernel(
        body,
        out_type=outputs,
        grid=(-(-programs // teams),),
        grid_names=("program",),
        num_threads=teams * warps // 4,
        thread_name="warpgroup",
        scratch_types=(plgpu.SMEM((teams * shared_floats,), jnp.float32),),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(*arguments)


def _emulated(
    program: Callable[..., None],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    arguments: tuple[Array, ...],
    programs: int,
    warps: int,
    shared_floats: int,
    teams: int,
) -> tuple[Array, ...]:
    def run(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        inputs = [np.array(array, order="C") for array in arrays]
        # What is never written is told from what is: not a number, or a large one.
        results = [np.frombuffer(b"\xff" * out.size * out.dtype.itemsize, out.dtype).copy() for out in outputs]
        results = [each.reshape(out.shape) for each, out in zip(results, outputs, strict=True)]
        with emulated_ops.launch(programs, warps, teams, 4 * shared_floats):
            program(emulated_ops, *inputs, *results, shared_floats)
        return tuple(results)

    return jax.pure_callback(run, outputs, *arguments)

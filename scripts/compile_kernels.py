"""Compiles attention kernels for an H100 on a machine without one, and says what the assembler made of them.

python3.12 -m pip install --no-deps --target FOLDER jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
python3.12 scripts/compile_kernels.py FOLDER [--shape NAME ...] [--recipe RECIPE ...]
    [--shares SHARES] [--base NUMBER] [--hlo FILE]

For each shape and recipe: registers and spilled bytes of its programs, and, where ``nvdisasm`` is found, the
instructions of the loop over tiles and those of loops inside it. Needs the version of JAX that the plugin is made for,
0.11 or later.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

DEVICE = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""An H100, as XLA's GpuTargetConfigProto describes devices."""

PRODUCTS = ("IMMA", "HMMA")
"""Instructions by which loops over tiles are told from others."""


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each recipe; 0, or 2 for wrong arguments."""
    options = _parse(arguments)
    _prepare(options.plugin)
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from kakeya_jax.cache import CacheShape, CompressedCache
    from kakeya_jax.neutral_tables import neutral_tables
    from kakeya_jax.pallas_kernels.attention.arg_specs import ARG_SPECS
    from kakeya_jax.pallas_kernels.attention.mosaic_gpu import attention_mosaic_gpu
    from kakeya_jax.pallas_kernels.attention.program_counts import shares_of
    from kakeya_jax.recipe import Recipe
    from kakeya_jax.rope import Rope

    topology: Any = topologies.get_topology_desc("h100", "cuda", target_config=DEVICE, topology="1x1x1")
    sharding = SingleDeviceSharding(topology.devices[0])
    jax.default_backend = lambda: "gpu"  # what kernels ask before they run
    for each in options.shape:
        if each not in ARG_SPECS:
            print(f"compile_kernels.py: no shape {each}; there are {', '.join(ARG_SPECS)}", file=sys.stderr)
            return 2
    for of_shape, name in itertools.product(options.shape, options.recipe):
        spec = ARG_SPECS[of_shape]
        shape = CacheShape(num_layers=1, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim)
        recipe = Recipe.parse(name)
        tables = neutral_tables(shape, recipe) if recipe.needs_calibration else None
        length = spec.tokens + recipe.sinks + recipe.recent
        cache = CompressedCache.init(
            shape, recipe, batch_size=spec.batch, max_length=length, dtype=jnp.bfloat16, tables=tables
        )
        leaves, tree = jax.tree.flatten(cache.layers[0])

        def attend(query: Any, *leaves: Any, tree: Any = tree, spec: Any = spec) -> Any:
            layer = jax.tree.unflatten(tree, leaves)
            return attention_mosaic_gpu(
                query,
                layer.key,
                layer.value,
                positions=layer.key.length[:, None] - 1,
                rope=Rope(head_dim=spec.head_dim, theta=options.base),
                scale=spec.head_dim**-0.5,
                splits=shares_of(options.shares),
            ).out

        query = ((spec.batch, 1, spec.num_kv_heads * spec.group, spec.head_dim), jnp.bfloat16)
        abstract = [
            jax.ShapeDtypeStruct(*each, sharding=sharding)
            for each in (query, *((leaf.shape, leaf.dtype) for leaf in leaves))
        ]
        with jax.sharding.use_abstract_mesh(_mesh(jax)):
            lowered = jax.jit(attend).trace(*abstract).lower()
        with _everything_printed() as printed:
            compiled = lowered.compile()
        of = f"{of_shape}, {name}" if len(options.shape) > 1 else name
        print(f"{of}: {'; '.join(describe(printed[0]))}", flush=True)
        if options.hlo:
            options.hlo.write_text(compiled.as_text())
    return 0


def describe(printed: str) -> list[str]:
    """What a compiler printed about its kernels, a text for each: registers, spills, instructions of loops."""
    found = []
    for kernel in printed.split("Compiling entry function")[1:]:
        registers = re.search(r"Used (\d+) registers", kernel)
        spilled = re.search(r"(\d+) bytes spill stores", kernel)
        if registers is None or spilled is None:
            continue
        text = f"{registers[1]} registers, {spilled[1]} bytes spilled"
        loops = loops_of(kernel)
        if loops:
            (size, products), *inner = sorted(loops, reverse=True)
            text += f", a loop of {size} instructions with {products} products"
            text += "".join(f", in it one of {size} with {products}" for size, products in inner)
        found.append(text)
    return found


def loops_of(assembly: str) -> list[tuple[int, int]]:
    """Instructions and products of every loop with products, of a program as ``nvdisasm`` prints it."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := re.match(r"\s*\.(L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,5}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    found = []
    for index, instruction in enumerate(instructions):
        target = re.search(r"BRA.*\(\.(L_x_\d+)\)", instruction)
        start = labels.get(target[1], index + 1) if target else index + 1
        products = sum(any(name in each for name in PRODUCTS) for each in instructions[start : index + 1])
        if products:
            found.append((index + 1 - start, products))
    return found


def _mesh(jax: Any) -> Any:
    from jax.sharding import AbstractDevice, AbstractMesh

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    return AbstractMesh((1,), ("x",), abstract_device=device)


def _prepare(plugin: pathlib.Path) -> None:
    """Makes the plugin and the assembler known; before JAX is imported."""
    root = plugin / "nvidia" / "cuda_nvcc"
    os.environ.update(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", JAX_PLATFORMS="cpu")
    os.environ.update(MOSAIC_GPU_DUMP_PTXAS="1", MOSAIC_GPU_DUMP_SASS="1")
    os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    sys.path.insert(0, str(plugin))


@contextlib.contextmanager
def _everything_printed() -> Iterator[list[str]]:
    """What this process prints, from C++ too; in the list afterwards."""
    printed: list[str] = []
    sys.stdout.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    with tempfile.TemporaryFile() as file:
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield printed
        finally:
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)
            file.seek(0)
            printed.append(file.read().decode(errors="replace"))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compile_kernels.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plugin", type=pathlib.Path, metavar="FOLDER", help="with JAX's CUDA plugin and ptxas")
    parser.add_argument(
        "--shape", nargs="+", default=["b8-k8-g4-32k"], metavar="NAME", help="of arg_specs.py [b8-k8-g4-32k]"
    )
    parser.add_argument("--recipe", nargs="+", default=["turboquant-4", "klt-2", "klt-3"], metavar="RECIPE")
    parser.add_argument(
        "--shares", default="0", metavar="SHARES", help="of programs, as for time_steps.py; 0: the kernels' choice [0]"
    )
    parser.add_argument("--base", type=float, default=1e4, metavar="NUMBER", help="of the rotary embedding [1e4]")
    parser.add_argument("--hlo", type=pathlib.Path, metavar="FILE", help="also write XLA's program, of the last recipe")
    options = parser.parse_args(arguments)
    if not (options.plugin / "jax_cuda12_plugin").is_dir():
        parser.error(
            f"{options.plugin} has no jax_cuda12_plugin; the command that installs it is in this script's help"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())

"""What the time of encoding a prompt goes to on a GPU: every kernel of one layer's keys, values, and whole append.

python scripts/profile_encode.py [--recipe RECIPE ...] [--context TOKENS] [--least SHARE]

Of a layer of random bfloat16 keys and values, with stand-ins for calibrated tables; ``append`` is what a prefill runs:
keys and values gathered from the chunk, coded, and written into the cache. Milliseconds of ``jax.profiler``, the mean
of ten calls; shapes and operations are those of XLA's compiled program.
"""

import argparse
import collections
import functools
import gzip
import json
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax import pallas_kernels as pallas_kernels  # its encoders
from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope
from kakeya_jax.stream import encode_pages

CALLS = 10


def main(arguments: list[str] | None = None) -> int:
    """Prints a table for each recipe and part; 0, or 2 where there is no GPU."""
    options = _parse(arguments)
    device = jax.devices()[0]
    if device.platform != "gpu":
        print(f"profile_encode.py: {device.platform} has no kernels to tell apart; run it on a GPU", file=sys.stderr)
        return 2
    print(f"{device.device_kind}, jax {jax.__version__}, {options.context} tokens of one layer")
    for name in options.recipe:
        for part, (run, inputs) in parts(name, options.heads, options.head_dim, options.context).items():
            compiled = jax.jit(run).lower(*inputs).compile()
            busy = kernel_times(functools.partial(compiled, *inputs))
            total = sum(busy.values())
            print(f"\n{name}, {part}: {total:.3f} ms")
            described = operations(compiled.as_text() or "")
            for kernel, milliseconds in sorted(busy.items(), key=lambda each: -each[1]):
                if milliseconds >= options.least * total:
                    print(f"  {milliseconds:8.4f}  {kernel}  {described.get(kernel.replace('.', '_'), '')}", flush=True)
    return 0


def parts(name: str, heads: int, head_dim: int, context: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """What is looked at, and its arguments."""
    recipe = Recipe.parse(name)
    shape = CacheShape(num_layers=1, num_kv_heads=heads, head_dim=head_dim)
    tables = neutral_tables(shape, recipe) if recipe.needs_calibration else None
    cache = CompressedCache.init(shape, recipe, batch_size=1, max_length=context, dtype=jnp.bfloat16, tables=tables)
    layer, rope = cache.layers[0], Rope(head_dim=head_dim)
    key, value = (
        jax.random.normal(jax.random.key(seed), (1, context, heads, head_dim), jnp.bfloat16) for seed in (0, 1)
    )

    def pages(stream: Any, new: Any) -> Any:
        tokens = new[:, : stream.geometry.num_pages * stream.geometry.page]
        return encode_pages(stream.codec, jnp.swapaxes(tokens, 1, 2))

    found: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        stream: (pages, (held, new)) for (stream, held), new in zip(layer.streams(), (key, value), strict=True)
    }
    found["append"] = (lambda layer, key, value: layer.append(key, value, rope=rope).layer, (layer, key, value))
    return found


def kernel_times(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds that each kernel of a call takes, by name."""
    for _ in range(2):
        jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready([call() for _ in range(CALLS)])
        (path,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        loaded = json.loads(gzip.decompress(path.read_bytes()))
    events = loaded["traceEvents"] if isinstance(loaded, dict) else loaded
    names: dict[Any, str] = {}
    for event in events:
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name"):
            place = event["pid"] if event["name"] == "process_name" else (event["pid"], event["tid"])
            names[place] = event["args"]["name"]
    busy: dict[str, float] = collections.defaultdict(float)
    for event in events:
        on_stream = "tream" in names.get((event.get("pid"), event.get("tid")), "")
        if event.get("ph") == "X" and "GPU" in names.get(event["pid"], "") and on_stream:
            busy[event["name"]] += event["dur"] / 1e3 / CALLS
    return busy


def operations(hlo: str) -> dict[str, str]:
    """The shape and the traced operation of each instruction of a compiled program, by its kernel's name."""
    found = {}
    for name, shape, rest in re.findall(r"%(\S+) = (\([^=]*?\)|\S+) (?:fusion|custom-call|copy)\((.*)", hlo):
        operation = re.search(r'op_name="([^"]*)"', rest)
        found[name.replace(".", "_")] = f"{shape[:60]} {operation[1][-70:] if operation else ''}"
    return found


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="profile_encode.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", nargs="+", default=["klt-2", "klt-4"], metavar="RECIPE")
    parser.add_argument("--heads", type=int, default=8, metavar="COUNT", help="key/value heads [8]")
    parser.add_argument("--head-dim", type=int, default=128, metavar="D", help="[128]")
    parser.add_argument("--context", type=int, default=32768, metavar="TOKENS", help="[32768]")
    parser.add_argument(
        "--least", type=float, default=0.01, metavar="SHARE", help="of a part's time to be listed [0.01]"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

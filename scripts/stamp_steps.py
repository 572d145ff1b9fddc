"""Where the time of a decode step of one layer goes on a GPU, by stamps of its clock.

python scripts/stamp_steps.py SHAPE RECIPE [SHARES]

Through the Mosaic GPU kernels, over random codes and queries, calls one after the other. Microseconds from the first
program's start at which 0, 10, 50, 90 and 100 % of the warps were where kakeya_jax.pallas_kernels.attention.stamps
says, of programs that began at once and of those that began later; and from the end of the launch before. SHARES is as
for time_steps.py. Stamps take registers: where time_steps.py says that the step is faster by more than the stamps
should take, fewer programs may have run at a time; 6t3, say, bounds registers.
"""

import argparse
import sys
from typing import Any

import jax
import numpy as np

from kakeya_jax.eval.bench_attention import random_layers, random_query
from kakeya_jax.pallas_kernels.attention.arg_specs import ARG_SPECS
from kakeya_jax.pallas_kernels.attention.mosaic_gpu import attention_mosaic_gpu
from kakeya_jax.pallas_kernels.attention.program_counts import shares_of
from kakeya_jax.pallas_kernels.attention.stamps import PLACES, stamped
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

CALLS = 8
AT_ONCE = 3000
"""Nanoseconds within which programs begin that begin at once."""

PERCENT = (0, 10, 50, 90, 100)


def main(arguments: list[str] | None = None) -> int:
    """Prints where the last of some calls was when; 0, or 2 for wrong arguments and where there is no kernel."""
    options = _parse(arguments)
    try:
        before, last = _measure(options.shape, options.recipe, options.shares)
    except (ValueError, NotImplementedError) as error:
        print(f"stamp_steps.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(before, last)))
    return 0


def report(before: np.ndarray, last: np.ndarray) -> list[str]:
    """Lines about stamps ``[programs, warps, places]`` of a launch, and of the one before it."""
    zero = last[..., 0].astype(np.uint32)[0, 0]
    first = _since(zero, last[..., 0]).min()
    counted = PLACES.index("counted")
    gap = first - _since(zero, before[..., counted]).max()
    lines = [f"{last.shape[0]} programs; {gap / 1e3:.1f} us since the last state of the launch before was counted"]
    times = np.where(last == 0, np.nan, _since(zero, last) - first)
    began = times[:, 0, 0]
    for name, those in (("at once", began <= AT_ONCE), ("later", began > AT_ONCE)):
        if not those.any():
            continue
        lines.append(f"{those.sum()} programs that began {name}: {', '.join(map(str, PERCENT))} %")
        for index, place in enumerate(PLACES):
            found = times[those][..., index]
            if not np.isnan(found).all():
                lines.append(
                    f"  {place:12s}" + "".join(f"{each / 1e3:8.1f}" for each in np.nanpercentile(found, PERCENT))
                )
    return lines


def _since(zero: np.uint32, stamps: np.ndarray) -> np.ndarray:
    """Nanoseconds, of counters that go round."""
    return (stamps.astype(np.uint32) - zero).astype(np.int32).astype(np.float64)


def _measure(name: str, recipe: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    if name not in ARG_SPECS:
        raise ValueError(f"no shape {name}; there are {', '.join(ARG_SPECS)}")
    spec, splits, parsed = ARG_SPECS[name], shares_of(text), Recipe.parse(recipe)
    if jax.default_backend() != "gpu":
        raise NotImplementedError(f"{jax.default_backend()} runs no such kernels; run it on a GPU")
    layers = random_layers(spec, parsed)
    positions = layers[0].key.length[:, None] - 1
    rope, scale = Rope(head_dim=spec.head_dim), spec.head_dim**-0.5

    @jax.jit
    def call(query: jax.Array, layer: Any) -> tuple[jax.Array, list[jax.Array]]:
        with stamped() as found:
            attended = attention_mosaic_gpu(
                query, layer.key, layer.value, positions=positions, rope=rope, scale=scale, splits=splits
            )
        return attended.out.astype(query.dtype), found

    @jax.jit
    def calls(query: jax.Array, layers: list[Any]) -> list[list[jax.Array]]:
        found = []
        for index in range(CALLS):
            query, stamps = call(query, layers[index % len(layers)])
            found.append(stamps)
        return [*found, [query]]

    jax.block_until_ready(calls(random_query(spec), layers))
    *_, before, last, _ = jax.device_get(calls(random_query(spec), layers))
    return before[-1], last[0]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stamp_steps.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", metavar="SHAPE", help=", ".join(ARG_SPECS))
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument(
        "shares", nargs="?", default="0", metavar="SHARES", help="as for time_steps.py; 0: own choice [0]"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

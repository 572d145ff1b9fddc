"""Whole decode steps of one layer on a GPU, by how programs share the coded tokens of a head.

python scripts/time_steps.py OUT.jsonl SHAPE RECIPE [SHARES ...]

Through the Mosaic GPU kernels, over random codes and queries, without dense attention beside them. Each row is a line
of JSON that is added to OUT.jsonl as soon as it is measured: milliseconds of one step, median and quartiles of 21 loops
of whole calls. SHARES of 0, or none, is the kernels' own choice; 6 is that many programs of a head. 6+4:20:2 is four
late ones besides, of which each has 2 where the others have 20. x4 after it: four programs run on a multiprocessor, t4:
four are one block of threads.
"""

import argparse
import functools
import json
import pathlib
import sys
from typing import Any

import jax

from kakeya_jax.eval.bench_attention import random_layers, time_packed
from kakeya_jax.pallas_kernels.attention.arg_specs import ARG_SPECS
from kakeya_jax.pallas_kernels.attention.mosaic_gpu import attention_mosaic_gpu
from kakeya_jax.pallas_kernels.attention.program_counts import shares_of
from kakeya_jax.recipe import Recipe

REPEATS = 21


def main(arguments: list[str] | None = None) -> int:
    """Adds a row for each number of programs; 0, or 2 for wrong arguments and where there is no kernel."""
    options = _parse(arguments)
    try:
        _measure(options.out, options.shape, options.recipe, options.shares or ["0"])
    except (ValueError, NotImplementedError, OSError) as error:
        print(f"time_steps.py: {error}", file=sys.stderr)
        return 2
    return 0


def _attention(*streams: Any, **options: Any) -> jax.Array:
    return attention_mosaic_gpu(*streams, **options).out


def _measure(out: pathlib.Path, shape: str, recipe: str, shares: list[str]) -> None:
    if shape not in ARG_SPECS:
        raise ValueError(f"no shape {shape}; there are {', '.join(ARG_SPECS)}")
    wanted = [(text, shares_of(text)) for text in shares]
    parsed, device = Recipe.parse(recipe), jax.devices()[0]
    if device.platform != "gpu":
        raise NotImplementedError(f"{device.platform} runs no such kernels; run it on a GPU")
    layers = random_layers(ARG_SPECS[shape], parsed)
    for text, splits in wanted:
        attention = functools.partial(_attention, splits=splits)
        speed = time_packed(recipe, ARG_SPECS[shape], layers, attention, REPEATS)
        row = {
            "shape": shape,
            "recipe": recipe,
            "shares": text,
            "milliseconds": round(speed.milliseconds, 5),
            "quartiles": [round(each, 5) for each in speed.quartiles],
            "device": device.device_kind,
            "jax": jax.__version__,
        }
        print(json.dumps(row), flush=True)
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="time_steps.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, metavar="OUT.jsonl", help="a line is added to it for each row")
    parser.add_argument("shape", metavar="SHAPE", help=", ".join(ARG_SPECS))
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("shares", nargs="*", metavar="SHARES", help="programs of a head, see above; 0: own choice [0]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

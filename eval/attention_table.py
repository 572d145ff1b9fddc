"""``kakeya bench attention``: what was asked for on the command line, and the speeds as a table and as JSON."""

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.eval.bench_attention import AttentionSpeed, bench_attention, best_dense
from kakeya_jax.eval.bench_logits import bench_logits
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.saved_speeds import saved_rows
from kakeya_jax.pallas_kernels.attention.arg_specs import ARG_SPECS, LOGITS_SPECS, USUAL_SPECS, ArgSpec
from kakeya_jax.whole_file import whole_file

RECIPES = ("turboquant-4", "turboquant-3", "turboquant-2", "key=turboquant(bits=4),value=turboquant(bits=2)")
LOGITS_RECIPES = ("turboquant-4", "turboquant-2")
IMPLEMENTATIONS = ("mosaic_gpu", "triton")
Rows = Mapping[str, list[AttentionSpeed]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya bench attention``; ``bench_attention`` explains those it takes.

    Attributes:
        out: a file that is written anew after every row.
        resume: whether rows that it has are not measured again.
    """

    shapes: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    repeats: int = 51
    dense: bool = True
    logits: bool = False
    out: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.shapes if name not in ARG_SPECS]
        if unknown:
            raise ValueError(f"unknown shape {unknown[0]!r}; known: {', '.join(ARG_SPECS)}")
        if self.repeats < 2:
            raise ValueError(f"repeats={self.repeats} must be at least 2")

    @property
    def specs(self) -> dict[str, ArgSpec]:
        """The shapes asked for; the usual ones if none were."""
        return {name: ARG_SPECS[name] for name in self.shapes or (LOGITS_SPECS if self.logits else USUAL_SPECS)}


def measure(request: Request, *, quiet: bool = False) -> dict[str, list[AttentionSpeed]]:
    """The rows of every shape, with a line on stderr for each as it comes; ``out`` holds all so far.

    If the run goes on with rows of ``out``, these come first, those that were not asked for, too.

    Raises:
        ValueError: an unknown recipe, or ``out`` is no file that this run could go on with.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    out = request.out
    found = saved_rows(out, as_dict({}, request)) if out is not None and request.resume else {}
    if found:
        say(f"{out} has {sum(map(len, found.values()))} rows, which are not measured again")
    done = {shape: {row.name for row in rows} for shape, rows in found.items()}

    def write(*, complete: bool) -> None:
        if out is not None:
            _write(out, {"complete": complete, **as_dict(found, request)})

    def keep(shape: str, row: AttentionSpeed) -> None:
        found.setdefault(shape, []).append(row)
        say(f"{shape} {row.name}: {row.milliseconds:.4f} ms")
        write(complete=False)

    for shape, spec in request.specs.items():
        on_row = functools.partial(keep, shape)

        def on_skip(name: str, reason: str, shape: str = shape) -> None:
            say(f"{shape} {name}: not measured: {reason}")

        if request.logits:
            recipes = request.recipes or LOGITS_RECIPES
            known = done.get(shape, ())
            bench_logits(spec, recipes, repeats=request.repeats, done=known, on_row=on_row, on_skip=on_skip)
            continue
        bench_attention(
            spec,
            request.recipes or RECIPES,
            implementations=request.implementations or IMPLEMENTATIONS,
            repeats=request.repeats,
            dense=request.dense,
            done=done.get(shape, ()),
            on_row=on_row,
            on_skip=on_skip,
        )
    write(complete=True)
    return found


def table(rows: Rows) -> Group:
    """The rows for a terminal."""
    shown = Table(box=rich.box.SIMPLE_HEAD, title="one decode step of one layer", title_justify="left", pad_edge=False)
    for name in ("shape", "implementation"):
        shown.add_column(name)
    for name in ("ms", "quartiles", "GB/s\nread", "times the\nbest dense", "temporary\nMB"):
        shown.add_column(name, justify="right")
    for shape, measured in rows.items():
        for row in measured:
            ratio = _ratio(row, measured)
            temporary = row.temporary_nbytes
            shown.add_row(
                shape,
                row.name,
                f"{row.milliseconds:.4f}",
                "{:.4f} {:.4f}".format(*row.quartiles),
                f"{row.nbytes / row.milliseconds / 1e6:,.0f}",
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if temporary is None else f"{temporary / 1e6:.1f}",
            )
    return Group(shown, Text("floor copy: the dense K and V at the speed of a copy; GB/s of codes or of dense K and V"))


def as_dict(rows: Rows, request: Request) -> dict[str, Any]:
    """The rows as plain data for JSON, with the shapes and the environment."""
    return {
        "environment": environment(),
        "repeats": request.repeats,
        "logits": request.logits,
        "shapes": {
            shape: {
                **dataclasses.asdict(ARG_SPECS[shape]),
                "rows": [{**dataclasses.asdict(row), "ratio": _ratio(row, measured)} for row in measured],
            }
            for shape, measured in rows.items()
        },
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _ratio(row: AttentionSpeed, measured: list[AttentionSpeed]) -> float | None:
    """How many times as fast as the best dense implementation."""
    dense = best_dense(measured)
    return None if dense is None else dense.milliseconds / row.milliseconds

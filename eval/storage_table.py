"""``kakeya bench storage``: what was asked for on the command line, and the measured speeds as a table and as JSON."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.bench_storage import StorageSpeed, bench_storage
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.text import encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import DEMO, display_name
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

COUNTED = (
    "MB/s: 10^6 bytes per second of what the coded tokens take as bfloat16 K and V; exact tokens do not count",
    "save: symbols in a cache to a complete file; load: a file to a cache; entropy: the coder alone, without the file",
    "quantize: K and V to symbols, which a cache does as it is filled; reconstruct: symbols to K and V, as it is read",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya bench storage``; ``bench_storage`` explains those it takes."""

    model: str = DEMO
    recipes: tuple[str, ...] = ()
    calibration: Path | None = None
    tokens: Path | None = None
    context: int = 4096
    passages: int = 4
    repeats: int = 5
    offline: bool = False

    def __post_init__(self) -> None:
        for name, value in (("context", self.context), ("passages", self.passages), ("repeats", self.repeats)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.model != DEMO and self.calibration is None:
            raise ValueError("klt-storage needs calibrated tables; give --calibration FILE (see: kakeya calibrate)")

    @property
    def name(self) -> str:
        """Of the model, for display: a hub id as it is, of a folder its own name."""
        return display_name(self.model)


def measure(request: Request, *, quiet: bool = False) -> list[StorageSpeed]:
    """Loads what was asked for and measures, with a line on stderr for each row as it comes.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """

    def announce(row: StorageSpeed) -> None:
        if not quiet:
            print(f"{row.recipe}: save {row.save:,.0f} MB/s, load {row.load:,.0f} MB/s", file=sys.stderr)

    recipes = request.recipes or storage_recipes()
    calibration = load_calibration(request.calibration or bundled_calibration())
    if request.tokens is None:
        tokens = encode_text(bundled_text(), load_tokenizer(request.model, offline=request.offline))
    else:
        tokens = load_tokens(request.tokens)
    model, params = checkpoint.load(request.model, offline=request.offline)
    calibration.check_model(model.config, params)
    calibration.check_text(tokens)
    return bench_storage(
        model,
        params,
        tokens,
        recipes,
        calibration=calibration,
        context=request.context,
        passages=request.passages,
        repeats=request.repeats,
        on_row=announce,
    )


def storage_recipes() -> tuple[str, ...]:
    """Names of the recipes that session files are for."""
    recipes = {name: Recipe.named(name) for name in Recipe.names()}
    return tuple(
        name for name, recipe in recipes.items() if all(rule.codec.name == "klt-storage" for rule in recipe.rules)
    )


def table(rows: list[StorageSpeed], request: Request) -> Group:
    """The rows for a terminal, and what is counted."""
    title = f"{request.name}: session files of {request.passages} x {request.context} tokens, median time, MB/s"
    shown = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    shown.add_column("recipe")
    names = ("bits/value\nof the file", "coded\nMB", "save", "load", "entropy\nencode", "entropy\ndecode")
    for name in (*names, "quantize", "reconstruct"):
        shown.add_column(name, justify="right")
    for row in rows:
        speeds = row.save, row.load, row.entropy_encode, row.entropy_decode, row.quantize, row.reconstruct
        shown.add_row(row.recipe, f"{row.bits_per_value:.3f}", f"{row.megabytes:.1f}", *(f"{s:,.0f}" for s in speeds))
    return Group(shown, *(Text(line, style="dim") for line in COUNTED))


def as_dict(rows: list[StorageSpeed], request: Request) -> dict[str, Any]:
    """The rows as plain data for JSON, with the environment."""
    return {
        "model": request.name,
        "context": request.context,
        "passages": request.passages,
        "repeats": request.repeats,
        "counted": list(COUNTED),
        "environment": environment(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }

"""``kakeya calibrate``: from training text on disk to a file of tables; merging and looking at such files."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kakeya_jax.calibration import check
from kakeya_jax.calibration.artifact import Calibration, ExactTokens, load_calibration
from kakeya_jax.calibration.fit import STANDARD, fit
from kakeya_jax.calibration.level_files import export_levels
from kakeya_jax.calibration.merge import merge_calibrations
from kakeya_jax.eval.environment import environment, one_blas_thread, package_versions
from kakeya_jax.eval.outputs import check_output_file, check_output_folder
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.text import check_vocabulary, cut_passages, encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import ModelError, display_name, find_folder
from kakeya_jax.models.stress import stress, stressed_name
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

RESUME_SUFFIX = ".unfinished"
"""Added to the name of the file to write: where an interrupted run keeps what it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya calibrate``; ``calibration.fit`` explains those it takes."""

    model: str
    out: Path
    text: Path | None = None
    tokens: Path | None = None
    recipes: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    context: int = 2048
    passages: int = 12
    samples: int = 4
    seed: int = 0
    joint: bool = True
    backward: bool = True
    stress: float | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give training text: either --text FILE or --tokens FILE")
        for option in ("context", "passages", "samples"):
            if getattr(self, option) < 1:
                raise ValueError(f"--{option} {getattr(self, option)} must be at least 1")
        check_output_file("--out", self.out)

    @property
    def source(self) -> Path:
        """The training text."""
        return self.text or self.tokens or Path()


def run_calibrate(request: Request, *, quiet: bool = False) -> str:
    """Calibrates a model and writes the file; says what was written.

    What is summed so far is kept beside the file every half minute; the same request goes on from there.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    recipes = expand_fitted(request.recipes)
    exact = tuple(map(parse_window, request.windows)) or (STANDARD,)
    if request.text is None:
        tokens = load_tokens(request.source)
    else:
        tokens = encode_text(request.text, load_tokenizer(request.model, offline=request.offline))
    texts = cut_passages(tokens, request.context, request.passages)
    model, params = checkpoint.load(request.model, offline=request.offline)
    check_vocabulary(tokens, model.config.vocab_size)
    if request.stress is not None:
        params = stress(params, model.config, request.stress)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = request.out.with_name(request.out.name + RESUME_SUFFIX)
    with show_progress(quiet=quiet) as progress, one_blas_thread():
        calibration = fit(
            model,
            params,
            texts,
            recipes=recipes,
            exact=exact,
            samples=request.samples,
            seed=request.seed,
            joint=None if request.joint else False,
            backward=request.backward,
            resume=unfinished,
            about=_about(request),
            progress=progress,
        )
    calibration.save(request.out)
    unfinished.unlink(missing_ok=True)
    return f"{request.out}: {_summary(calibration)}, from {texts.size:,} tokens of {request.source.name}"


def expand_fitted(recipes: Sequence[str]) -> list[Recipe]:
    """The recipes asked for; ``all`` stands for every named recipe with a table that is fitted to one codec alone."""
    names: list[str] = []
    for recipe in recipes:
        every = [name for name in Recipe.names() if Recipe.named(name).needs_calibration]
        names += every if recipe == "all" else [recipe]
    return [Recipe.parse(name) for name in dict.fromkeys(names)]


def run_merge(paths: Sequence[Path], out: Path) -> str:
    """Merges calibrations of one model and writes the file; says what was written.

    Raises:
        ValueError, OSError: they do not belong together.
    """
    check_output_file("--out", out)
    with one_blas_thread():
        merged = merge_calibrations([load_calibration(path) for path in paths])
    out.parent.mkdir(parents=True, exist_ok=True)
    merged.save(out)
    tokens = merged.about["tokens"]
    return f"{out}: {_summary(merged)}, from {tokens:,} tokens of {', '.join(path.name for path in paths)}"


def run_check(path: Path, *, model: str | None = None, offline: bool = False) -> check.Report:
    """Looks at a calibration; with a model, also whether it is of that model.

    Raises:
        ValueError, OSError: no calibration, or of another model.
    """
    calibration = load_calibration(path)
    if model is not None:
        decoder, params = checkpoint.load(model, offline=offline)
        calibration.check_model(decoder.config, params)
    return check.check(calibration)


def run_levels(path: Path, folder: Path) -> str:
    """Writes the fitted levels of a calibration as files of their own; says what was written.

    Raises:
        ValueError, OSError: no calibration, or one without fitted levels.
    """
    check_output_folder("--levels", folder)
    written = export_levels(load_calibration(path), folder)
    return f"{folder}: {len(written)} tables of levels, {', '.join(path.name for path in written)}"


def parse_window(text: str) -> ExactTokens:
    """``SINKS:RECENT`` or ``SINKS:RECENT:PAGE``.

    Raises:
        ValueError: not that, or a number out of range.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"--window {text!r} must be SINKS:RECENT or SINKS:RECENT:PAGE, for example 4:128")
    sinks, recent, page = (*map(int, parts), *((STANDARD.page,) if len(parts) == 2 else ()))
    if recent < 1 or page < 1:
        raise ValueError(f"--window {text!r}: at least the newest token is exact, and a page has at least one token")
    return ExactTokens(sinks=sinks, recent=recent, page=page)


def _about(request: Request) -> dict[str, Any]:
    """What the header says besides what was measured; no paths, for files travel."""
    name = display_name(request.model)
    return {
        "text": request.source.name,
        "model": name if request.stress is None else stressed_name(name, request.stress),
        "tokenizer_hash": _tokenizer_hash(request.model, offline=request.offline),
        "date": environment()["date"],
        "packages": package_versions(),
        "command": {
            "recipes": list(request.recipes),
            "windows": list(request.windows),
            "context": request.context,
            "passages": request.passages,
            "samples": request.samples,
            "seed": request.seed,
            "joint": request.joint,
            "backward": request.backward,
        },
    }


def _tokenizer_hash(model: str, *, offline: bool) -> str | None:
    """Of the model's ``tokenizer.json``; None if it has none."""
    try:
        path = find_folder(model, offline=offline) / "tokenizer.json"
    except ModelError:
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _summary(calibration: Calibration) -> str:
    fitted = len(calibration.fitted)
    parts = [
        f"statistics of {calibration.shape.num_layers} layers for {'; '.join(map(str, calibration.exact))}",
        f"tables for {fitted} streams" if fitted else "",
    ]
    return ", ".join(part for part in parts if part)

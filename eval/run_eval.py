"""``kakeya eval``: from what was asked for on the command line to a result, and to where it should go."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

from kakeya_jax.calibration.artifact import Calibration, load_calibration
from kakeya_jax.calibration.tables import serves
from kakeya_jax.eval.demo import NOTE, bundled_calibration, bundled_text
from kakeya_jax.eval.gates import parse_gates
from kakeya_jax.eval.outputs import check_output_file
from kakeya_jax.eval.perplexity import Progress, evaluate
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.protocols import Protocol
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.eval.table import make_console, markdown_table, result_table
from kakeya_jax.eval.text import encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import DEMO, display_name
from kakeya_jax.models.stress import stress, stressed_name
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Int

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya eval``; ``evaluate`` explains those it takes, ``models.stress`` the factor ``stress``."""

    model: str
    recipes: tuple[str, ...]
    text: Path | None = None
    tokens: Path | None = None
    protocol: str = "stream"
    context: int = 4096
    passages: int | None = None
    warmup: int | None = None
    continuation: int | None = None
    chunk: int | None = None
    calibration: Path | None = None
    gates: str = "default"
    dtype: str = "float32"
    cache_dtype: str | None = None
    stress: float | None = None
    encode_time: bool = True
    offline: bool = False

    def __post_init__(self) -> None:
        if self.text is not None and self.tokens is not None:
            raise ValueError("give either --text or --tokens, not both")
        if self.text is None and self.tokens is None and self.model != DEMO:
            raise ValueError("nothing to evaluate on; give --text FILE or --tokens FILE")
        if not self.recipes:
            raise ValueError("no recipe; give --recipe NAME (see: kakeya recipes), or --recipe all")
        self.run()
        for name in (self.dtype, self.cache_dtype):
            if name is not None and name not in DTYPES:
                raise ValueError(f"dtype {name!r} must be one of {', '.join(DTYPES)}")

    def run(self) -> Protocol:
        """How each passage is run.

        Raises:
            ValueError: a size is out of range, or does not belong to the protocol.
        """
        return Protocol.with_defaults(
            self.protocol,
            context=self.context,
            warmup=self.warmup,
            continuation=self.continuation,
            chunk=self.chunk,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a request needs, loaded: requests that differ in recipes or protocol alone share them.

    Attributes:
        model: the decoder.
        params: its parameters, stressed if so requested.
        tokens: the text.
        calibration: the file named, or the bundled model's own; None without one.
    """

    model: Any
    params: Any
    tokens: Int
    calibration: Calibration | None


def run_request(request: Request, *, quiet: bool = False) -> EvalResult:
    """Checks what is cheap to check first, loads the model, and measures.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    inputs = load_inputs(request)
    with show_progress(quiet=quiet) as progress:
        return measure(request, inputs, progress)


def load_inputs(request: Request) -> Inputs:
    """Loads what ``measure`` needs, and checks that it fits together.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    calibration = _calibration(request)
    needed = [Recipe.parse(name).needs_calibration for name in expand_recipes(request.recipes, calibration)]
    if request.calibration is None and not any(needed):
        calibration = None
    parse_gates(request.gates)
    tokens = load_text(request)
    model, params = checkpoint.load(request.model, dtype=request.dtype, offline=request.offline)
    if request.stress is not None:
        params = stress(params, model.config, request.stress)
    if calibration is not None:
        calibration.check_model(model.config, params)
        calibration.check_text(tokens)
    return Inputs(model=model, params=params, tokens=tokens, calibration=calibration)


def load_text(request: Request) -> Int:
    """The tokens of the text, at least one context of them.

    Raises:
        ValueError, OSError: there is no such text, or it is too short.
    """
    tokens = None if request.tokens is None else load_tokens(request.tokens)
    if tokens is None:
        tokens = _encode(request)
    if len(tokens) < request.context:
        source = request.tokens or request.text or bundled_text()
        raise ValueError(
            f"{source} has {len(tokens)} tokens, fewer than one context of {request.context}; "
            "use a longer text or a smaller --context"
        )
    return tokens


def measure(request: Request, inputs: Inputs, progress: Progress) -> EvalResult:
    """Measures what was requested with what ``load_inputs`` gave for it, or for a request with more recipes."""
    names = expand_recipes(request.recipes, inputs.calibration)
    calibration = inputs.calibration
    if request.calibration is None and not any(Recipe.parse(name).needs_calibration for name in names):
        calibration = None
    result = evaluate(
        inputs.model,
        inputs.params,
        inputs.tokens,
        names,
        protocol=request.protocol,
        context=request.context,
        passages=request.passages,
        warmup=request.warmup,
        continuation=request.continuation,
        chunk=request.chunk,
        cache_dtype=request.cache_dtype,
        gates=parse_gates(request.gates),
        calibration=calibration,
        encode_time=request.encode_time,
        progress=progress,
    )
    return dataclasses.replace(
        result,
        model=_display_name(request.model, request.stress),
        text=(request.tokens or request.text or bundled_text()).name,
        note=NOTE if request.model == DEMO else "",
        command=command_of(request),
    )


def _display_name(model: str, factor: float | None) -> str:
    name = display_name(model)
    return name if factor is None else stressed_name(name, factor)


def expand_recipes(recipes: tuple[str, ...], calibration: Calibration | None = None) -> tuple[str, ...]:
    """The recipes asked for, with ``all`` replaced by every named recipe; each once.

    ``all`` leaves out recipes that need tables which this calibration does not have.
    """

    def served(recipe: Recipe) -> bool:
        return not recipe.needs_calibration or (calibration is not None and serves(calibration, recipe))

    expanded = []
    for recipe in recipes:
        expanded += [name for name in Recipe.names() if served(Recipe.named(name))] if recipe == "all" else [recipe]
    return tuple(dict.fromkeys(expanded))


def _calibration(request: Request) -> Calibration | None:
    """The file that was named; for the bundled model its own, unless its weights are changed.

    Its own is checked and used only if one of the recipes needs it.
    """
    if request.calibration is not None:
        return load_calibration(request.calibration)
    if request.model == DEMO and request.stress is None:
        return load_calibration(bundled_calibration())
    return None


def check_outputs(*, json_path: str | None = None, markdown: Path | None = None, plot: Path | None = None) -> None:
    """Checks before a run that ``deliver`` will be able to write its files.

    Raises:
        ValueError: one of them cannot be written.
        ImportError: a plot is wanted, and matplotlib is not installed.
    """
    if plot:
        from kakeya_jax.eval.plot import check_plot

        check_plot(plot)
    named = {"--json": None if json_path == "-" else json_path, "--markdown": markdown, "--plot": plot}
    for option, path in named.items():
        if path is not None:
            check_output_file(option, path)


def deliver(
    result: EvalResult,
    *,
    json_path: str | None = None,
    markdown: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Prints the table, or the JSON if ``json_path`` is ``"-"``, and writes the files asked for."""
    if json_path == "-":
        print(result.to_json())
    else:
        console = make_console()
        console.print(result_table(result, console.width))
        if json_path:
            result.save(json_path)
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(markdown_table(result))
    if plot:
        from kakeya_jax.eval.plot import save_plot

        save_plot(result, plot)


def command_of(request: Request) -> str:
    """The command line that repeats a request, run where its relative paths lead to the same files.

    Variables such as ``$HOUSE`` stay as they are written, for the shell to fill in.
    """
    words = ["kakeya", "eval", shell_word(str(request.model))]
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name in ("model", "recipes") or value == field.default:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", shell_word(f"{value:g}" if isinstance(value, float) else str(value))]
    for recipe in request.recipes:
        words += ["--recipe", shell_word(recipe)]
    return " ".join(words)


def shell_word(text: str) -> str:
    """A word quoted for the shell; in double quotes, which let variables through, if it has one."""
    if re.fullmatch(r"[\w./~@:+-]*\$\w[\w./ @:+$-]*", text):
        return f'"{text}"'
    return shlex.quote(text)


def _encode(request: Request) -> Int:
    tokenizer = load_tokenizer(request.model, offline=request.offline)
    return encode_text(request.text or bundled_text(), tokenizer)

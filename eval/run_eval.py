"""``kakeya eval``: from what was asked for on the command line to a result, and to where it should go."""

import dataclasses
from pathlib import Path

from kakeya_jax.calibration.artifact import Calibration, load_calibration
from kakeya_jax.calibration.tables import serves
from kakeya_jax.eval.demo import NOTE, bundled_calibration, bundled_text
from kakeya_jax.eval.environment import one_blas_thread
from kakeya_jax.eval.gates import parse_gates
from kakeya_jax.eval.outputs import check_output_file
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.protocols import Protocol
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.eval.table import make_console, markdown_table, result_table
from kakeya_jax.eval.text import encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import DEMO
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


def run_request(request: Request, *, quiet: bool = False) -> EvalResult:
    """Checks what is cheap to check first, loads the model, and measures.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    calibration = _calibration(request)
    names = expand_recipes(request.recipes, calibration)
    needed = [Recipe.parse(name).needs_calibration for name in names]
    if request.calibration is None and not any(needed):
        calibration = None
    gates = parse_gates(request.gates)
    tokens = None if request.tokens is None else load_tokens(request.tokens)
    if tokens is None:
        tokens = _encode(request)
    if len(tokens) < request.context:
        source = request.tokens or request.text or bundled_text()
        raise ValueError(
            f"{source} has {len(tokens)} tokens, fewer than one context of {request.context}; "
            "use a longer text or a smaller --context"
        )
    model, params = checkpoint.load(request.model, dtype=request.dtype, offline=request.offline)
    if request.stress is not None:
        params = stress(params, model.config, request.stress)
    if calibration is not None:
        calibration.check_model(model.config, params)
        calibration.check_text(tokens)
    with show_progress(quiet=quiet) as progress, one_blas_thread():
        result = evaluate(
            model,
            params,
            tokens,
            names,
            protocol=request.protocol,
            context=request.context,
            passages=request.passages,
            warmup=request.warmup,
            continuation=request.continuation,
            chunk=request.chunk,
            cache_dtype=request.cache_dtype,
            gates=gates,
            calibration=calibration,
            encode_time=request.encode_time,
            progress=progress,
        )
    return dataclasses.replace(
        result,
        model=_display_name(request.model, request.stress),
        text=(request.tokens or request.text or bundled_text()).name,
        note=NOTE if request.model == DEMO else "",
    )


def _display_name(model: str, factor: float | None) -> str:
    """A hub id as it is, of a folder its own name: where it lies concerns nobody who reads the results."""
    folder = Path(model).expanduser()
    name = folder.resolve().name if folder.is_dir() else model
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


def _encode(request: Request) -> Int:
    tokenizer = load_tokenizer(request.model, offline=request.offline)
    return encode_text(request.text or bundled_text(), tokenizer)

"""The ``kakeya`` command: options here, work elsewhere, imported by the command that needs it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kakeya_jax.eval import cli_decode, cli_inspect, cli_lm_eval, cli_runs
from kakeya_jax.eval.cli_options import JsonFlag, ModelArgument, OfflineFlag, QuietFlag
from kakeya_jax.eval.cli_options import configure as _configure
from kakeya_jax.eval.cli_options import show as _print
from kakeya_jax.eval.cli_search import search
from kakeya_jax.eval.cli_session import session
from kakeya_jax.eval.xla_flags import avoid_hangs

app = typer.Typer(
    name="kakeya",
    help="KV-cache compression for LLM decoders: packed codes, and their quality through the same cache.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Speed.")
app.add_typer(bench, name="bench")
cli_inspect.add_commands(app)
cli_runs.add_commands(app)
cli_lm_eval.add_command(app)
cli_decode.add_command(bench)
app.add_typer(session, name="session")

HeadDimOption = Annotated[int, typer.Option(min=1, help="For the bits per value.")]


def main() -> None:
    """The console script."""
    avoid_hangs()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0, 1 (a check failed), 2 (wrong input), 130 (interrupted).

    Wrong input gives one line on stderr. ``KAKEYA_TRACEBACK=1`` shows where it was found.
    """
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="kakeya", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", code=130)
    except Exception as error:
        # A click error, wherever this version of typer keeps click, is one that can format itself.
        format_message = getattr(error, "format_message", None)
        wrong_input = format_message or isinstance(error, ValueError | OSError | ImportError | NotImplementedError)
        if not wrong_input or os.environ.get("KAKEYA_TRACEBACK"):
            raise
        return _complain(format_message() if format_message else str(error) or type(error).__name__)
    return code if isinstance(code, int) else 0


@app.command("eval")
def eval_command(
    model: ModelArgument,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe", help="Name, text form, or JSON file; repeat it. 'all': every named recipe.", metavar="RECIPE"
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to evaluate on.", metavar="FILE")] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Token ids, .npy or .npy.xz, instead of a text.", metavar="FILE")
    ] = None,
    protocol: Annotated[str, typer.Option(help="stream or snapshot.")] = "stream",
    context: Annotated[int, typer.Option(min=2, help="Tokens of each passage.")] = 4096,
    passages: Annotated[int | None, typer.Option(min=1, help="Default: until 20,000 tokens are scored.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Unscored first tokens of a stream [512].")] = None,
    continuation: Annotated[int | None, typer.Option(min=2, help="Tokens fed after a snapshot [512].")] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Tokens fed at once; not a matter of quality.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Calibrated tables.", metavar="FILE")] = None,
    stress: Annotated[
        float | None,
        typer.Option(help="Same function, outlier channels of K and V this many times larger.", metavar="FACTOR"),
    ] = None,
    gates: Annotated[
        str,
        typer.Option(help="default, star, perplexity, or accept=1/95,marginal=3/85 (|dPPL| % / top-1 %)."),
    ] = "default",
    dtype: Annotated[str, typer.Option(help="Of weights and activations: float32 or bfloat16.")] = "float32",
    cache_dtype: Annotated[str | None, typer.Option(help="Of exact tokens [as --dtype].")] = None,
    encode_time: Annotated[
        bool, typer.Option("--encode-time/--no-encode-time", help="Also time the encoding of a context.")
    ] = True,
    json_path: Annotated[
        str | None, typer.Option("--json", help="Write the results; '-' prints them instead.", metavar="FILE")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table.", metavar="FILE")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write KL against bits as PNG.", metavar="FILE")] = None,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure recipes on a text: perplexity, KL, top-1 agreement, bits and bytes."""
    _configure(offline=offline)
    from kakeya_jax.eval import run_eval

    request = run_eval.Request(
        model=model,
        recipes=tuple(recipe or ()),
        text=text,
        tokens=tokens,
        protocol=protocol,
        context=context,
        passages=passages,
        warmup=warmup,
        continuation=continuation,
        chunk=chunk,
        calibration=calibration,
        gates=gates,
        dtype=dtype,
        cache_dtype=cache_dtype,
        stress=stress,
        encode_time=encode_time,
        offline=offline,
    )
    run_eval.check_outputs(json_path=json_path, markdown=markdown, plot=plot)
    result = run_eval.run_request(request, quiet=quiet)
    run_eval.deliver(result, json_path=json_path, markdown=markdown, plot=plot)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md and the plot.")] = Path("runs/demo"),
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure thirteen recipes on the bundled model: no network, no GPU, a few minutes."""
    _configure(offline=True)
    from kakeya_jax.eval.demo import run_demo
    from kakeya_jax.eval.progress import show_progress
    from kakeya_jax.eval.table import make_console, result_table

    with show_progress(quiet=quiet) as progress:
        result = run_demo(out, progress=progress)
    _print(result.to_dict() if as_json else result_table(result, make_console().width), as_json)
    written = ", ".join(sorted(str(path) for path in out.iterdir() if path.suffix in (".json", ".md", ".png")))
    print(f"written: {written}", file=sys.stderr)
    if not (out / "kl_vs_bits.png").exists():
        print("no plot: install matplotlib with pip install 'kakeya-jax[report]'", file=sys.stderr)


@app.command()
def calibrate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder, hub id, or 'demo', the bundled model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write.", metavar="FILE")] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 training text.", metavar="FILE")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids instead of a text.", metavar="FILE")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            help="Also fit tables of its codecs' own (centroids, bases); repeat it. 'all': every named recipe.",
            metavar="RECIPE",
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            "--window",
            help="Exact tokens SINKS:RECENT[:PAGE] of the recipes to come [4:128]; repeat it.",
            metavar="WINDOW",
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of each passage.")] = 2048,
    passages: Annotated[int, typer.Option(help="How many, evenly spaced.")] = 12,
    samples: Annotated[int, typer.Option(help="Backward passes for each passage.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the labels that are drawn.")] = 0,
    joint: Annotated[bool, typer.Option("--joint/--no-joint", help="Correlations between heads, K and V.")] = True,
    backward: Annotated[
        bool, typer.Option("--backward/--no-backward", help="Gradients, or finite differences: less exact.")
    ] = True,
    stress: Annotated[
        float | None, typer.Option(help="Of the model with outlier channels this many times as large.")
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", help="Merge files of the same model; repeat it.", metavar="FILE")
    ] = None,
    check: Annotated[Path | None, typer.Option("--check", help="Only look at a file.", metavar="FILE")] = None,
    of_model: Annotated[
        str | None, typer.Option("--model", help="With --check: is the file of this model?", metavar="MODEL")
    ] = None,
    levels: Annotated[
        Path | None, typer.Option(help="With --check: write its fitted levels as files of float32.", metavar="FOLDER")
    ] = None,
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure a model on training text, for the tables that calibrated recipes need.

    The text must not be evaluated on. Interrupted, the same command goes on where it was.
    """
    _configure(offline=offline)
    from kakeya_jax.eval import run_calibrate as work

    if check is not None:
        if model or merge or out:
            raise ValueError("--check FILE only looks at a file; give a model to compare it with as --model MODEL")
        report = work.run_check(check, model=of_model, offline=offline)
        from kakeya_jax.eval.calibration_table import report_table

        _print(report.to_dict() if as_json else report_table(report), as_json)
        if levels is not None:
            print(work.run_levels(check, levels), file=sys.stderr)
        return
    if levels is not None:
        raise ValueError("--levels FOLDER writes the levels of a file that exists; name it with --check FILE")
    if out is None:
        raise ValueError("nowhere to write; give --out FILE (or --check FILE to look at one)")
    if merge:
        if model or text or tokens:
            raise ValueError("--merge FILE --merge FILE --out FILE takes no model and no text")
        print(work.run_merge(merge, out))
        return
    if model is None:
        raise ValueError("no model; give a folder, a hub id, or 'demo'")
    request = work.Request(
        model=model,
        out=out,
        text=text,
        tokens=tokens,
        recipes=tuple(recipe or ()),
        windows=tuple(window or ()),
        context=context,
        passages=passages,
        samples=samples,
        seed=seed,
        joint=joint,
        backward=backward,
        stress=stress,
        offline=offline,
    )
    print(work.run_calibrate(request, quiet=quiet))


app.command()(search)


@app.command()
def ablate(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the ablation: see --list.")] = None,
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Folder, hub id, or 'demo'.")] = "demo",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to score.", metavar="FILE")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids to score, instead.", metavar="FILE")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Of this model: see calibrate.", metavar="FILE")] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training tokens for tables that --calibration lacks.", metavar="FILE")
    ] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens of each passage.")] = None,
    passages: Annotated[int | None, typer.Option(min=1, help="How many, evenly spaced.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the results; interrupted, go on from there.", metavar="FILE")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table.", metavar="FILE")] = None,
    part: Annotated[
        str | None, typer.Option(help="Only every N-th cell, from the K-th; then run it without.", metavar="K/N")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the ablations.")] = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Answer one question by measuring recipes, or parts of them, that differ in one thing."""
    _configure(offline=offline)
    from kakeya_jax.eval.ablations import command

    if list_all or name is None:
        _print(command.listing(), False)
        return
    result = command.measure(
        command.Request(
            name=name,
            model=model,
            text=text,
            tokens=tokens,
            calibration=calibration,
            train=train,
            context=context,
            passages=passages,
            json_path=json_path,
            part=command.parse_part(part),
            offline=offline,
        ),
        markdown=markdown,
        quiet=quiet,
    )
    if result is not None:
        _print(command.result_table(result), False)


@app.command()
def codecs(head_dim: HeadDimOption = 128, as_json: JsonFlag = False) -> None:
    """List the codecs with their options."""
    _configure()
    from kakeya_jax.eval import listing

    found = listing.list_codecs(head_dim)
    _print(found if as_json else listing.codec_table(found, head_dim), as_json)


@app.command()
def recipes(head_dim: HeadDimOption = 128, as_json: JsonFlag = False) -> None:
    """List the named recipes."""
    _configure()
    from kakeya_jax.eval import listing

    found = listing.list_recipes(head_dim)
    _print(found if as_json else listing.recipe_table(found, head_dim), as_json)


@bench.command("encode")
def bench_encode(
    codec: Annotated[list[str] | None, typer.Option(help="Repeat it; all if not given.", metavar="NAME")] = None,
    vectors: Annotated[int, typer.Option(min=1, help="Vectors encoded at once.")] = 4096,
    head_dim: Annotated[int, typer.Option(min=1, help="Dimension of the vectors.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each; the median counts.")] = 9,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time the encoding of every codec beside plain numpy."""
    _configure()
    from kakeya_jax.eval import bench_table

    rows = bench_table.measure(codec, vectors=vectors, head_dim=head_dim, repeats=repeats, quiet=quiet)
    _print(
        bench_table.as_dict(rows, vectors, head_dim) if as_json else bench_table.table(rows, vectors, head_dim),
        as_json,
    )


@bench.command("attention")
def bench_attention(
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Repeat it; if not given, those of the goals and two short ones.", metavar="NAME"),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="What the cache holds; repeat it.", metavar="RECIPE")
    ] = None,
    implementation: Annotated[
        list[str] | None, typer.Option(help="mosaic_gpu, triton or reference; repeat it.", metavar="NAME")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed loops of calls; the median counts.")] = 51,
    dense: Annotated[bool, typer.Option(help="Dense attention beside it.")] = True,
    logits: Annotated[bool, typer.Option("--logits", help="Logits alone, beside a dense product.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the JSON here, anew after every row.", metavar="FILE")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out FILE: rows that it has are not measured again.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time a decode step's attention over packed codes beside dense attention."""
    _configure()
    from kakeya_jax.eval import attention_table as work
    from kakeya_jax.eval.outputs import check_output_file

    if out is not None:
        check_output_file("--out", out)
    elif resume:
        raise ValueError("--resume goes on with a file; name it with --out FILE")
    request = work.Request(
        shapes=tuple(shape or ()),
        recipes=tuple(recipe or ()),
        implementations=tuple(implementation or ()),
        repeats=repeats,
        dense=dense,
        logits=logits,
        out=out,
        resume=resume,
    )
    rows = work.measure(request, quiet=quiet)
    _print(work.as_dict(rows, request) if as_json else work.table(rows), as_json)


@bench.command("storage")
def bench_storage(
    model: Annotated[str, typer.Option(help="Folder, hub id, or 'demo', the bundled model.")] = "demo",
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Of klt-storage; repeat it. Default: the named ones.", metavar="RECIPE"),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibrated tables; the bundled model has its own.", metavar="FILE")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Token ids to run the model on, instead of the bundled text.", metavar="FILE")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each passage.")] = 4096,
    passages: Annotated[int, typer.Option(min=1, help="Passages of a session file: rows of the cache.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each step; the median counts.")] = 5,
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time saving and loading of session files, step by step, on a model's own K and V.

    Speeds are MB (10^6 bytes) per second of what the coded tokens take as bfloat16 K and V. The exact tokens of a
    session are saved and loaded too, but do not count.
    """
    _configure(offline=offline)
    from kakeya_jax.eval import storage_table as work

    request = work.Request(
        model=model,
        recipes=tuple(recipe or ()),
        calibration=calibration,
        tokens=tokens,
        context=context,
        passages=passages,
        repeats=repeats,
        offline=offline,
    )
    rows = work.measure(request, quiet=quiet)
    _print(work.as_dict(rows, request) if as_json else work.table(rows, request), as_json)


def _complain(message: str, code: int = 2) -> int:
    print(f"kakeya: error: {' '.join(message.split())}", file=sys.stderr)
    return code

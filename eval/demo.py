"""``kakeya demo``: the whole measurement on the bundled model and text, without a network or a GPU."""

import dataclasses
import importlib.util
from pathlib import Path

from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.outputs import check_output_file, check_output_folder
from kakeya_jax.eval.perplexity import Progress, evaluate
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import DEMO, ModelError, find_folder
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

RECIPES = (
    "identity",
    "int8",
    "int4-affine",
    "kivi-2",
    "kivi-4",
    "turboquant-2",
    "turboquant-3",
    "turboquant-4",
    "besicovitch",
    "kakeya-pareto",
    "klt-2",
    "klt-quality-2",
    "klt-pairs-2",
)
OUTPUTS = ("results.json", "results.md", "kl_vs_bits.png")
"""Files that ``run_demo`` writes; the plot only with matplotlib."""

CONTEXT = 2048
PASSAGES = 4
NOTE = "small bundled model: these numbers show that everything works, not how recipes do on large models"


def bundled_text() -> Path:
    """The text that comes with the bundled model.

    Raises:
        ModelError: the model, or its text, is not installed.
    """
    path = find_folder(DEMO) / "text.txt"
    if not path.is_file():
        raise ModelError(f"the bundled text is missing from {path.parent}; reinstall kakeya-jax")
    return path


def bundled_calibration() -> Path:
    """The calibration that comes with the bundled model.

    Raises:
        ModelError: the model, or its calibration, is not installed.
    """
    path = find_folder(DEMO) / "calibration.safetensors"
    if not path.is_file():
        raise ModelError(f"the bundled calibration is missing from {path.parent}; reinstall kakeya-jax")
    return path


def run_demo(out: Path, *, progress: Progress | None = None) -> EvalResult:
    """Measures ``RECIPES``; writes ``results.json``, ``results.md`` and, with matplotlib, ``kl_vs_bits.png``.

    Args:
        out: the folder to write into; made if it does not exist.
        progress: told about every step.

    Raises:
        ValueError: the folder cannot be written to.
    """
    from kakeya_jax.eval.plot import save_plot
    from kakeya_jax.eval.table import markdown_table

    check_output_folder("--out", out)
    for name in OUTPUTS:
        check_output_file("--out", out / name)
    model, params = checkpoint.load(DEMO)
    text = bundled_text()
    tokens = encode_text(text, load_tokenizer(DEMO))
    calibration = None
    if any(Recipe.named(name).needs_calibration for name in RECIPES):
        calibration = load_calibration(bundled_calibration())
        calibration.check_model(model.config, params)
        calibration.check_text(tokens)
    result = evaluate(
        model,
        params,
        tokens,
        RECIPES,
        context=CONTEXT,
        passages=PASSAGES,
        calibration=calibration,
        encode_time=False,  # compiles every layer's encoder apart: a fifth of the whole
        progress=progress,
    )
    result = dataclasses.replace(result, model=DEMO, text=text.name, note=NOTE)
    json_path, markdown, plot = (out / name for name in OUTPUTS)
    result.save(json_path)
    markdown.write_text(markdown_table(result))
    if importlib.util.find_spec("matplotlib") is not None:
        save_plot(result, plot)
    return result

"""``kakeya calibrate``: from training text on disk to a file of tables."""

from pathlib import Path

from kakeya_jax.calibration.fit import fit
from kakeya_jax.eval.environment import package_versions
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.text import check_vocabulary, cut_passages, encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe


def run_calibrate(
    model_name: str,
    recipe: str,
    source: Path,
    out: Path,
    *,
    is_text: bool,
    context: int,
    passages: int,
    offline: bool = False,
    quiet: bool = False,
) -> str:
    """Fits the tables of ``recipe`` and writes them to ``out``; says what was written.

    Raises:
        ValueError, OSError: wrong input, or a recipe that needs no tables; the message is one line.
    """
    parsed = Recipe.parse(recipe)
    tokens = encode_text(source, load_tokenizer(model_name, offline=offline)) if is_text else load_tokens(source)
    texts = cut_passages(tokens, context, passages)
    model, params = checkpoint.load(model_name, offline=offline)
    check_vocabulary(tokens, model.config.vocab_size)
    about = {"text": source.name, "model": model_name, "packages": package_versions()}
    with show_progress(quiet=quiet) as progress:
        calibration = fit(model, params, texts, parsed, about=about, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    calibration.save(out)
    fitted = f"tables for {len(calibration.tables)} streams of {parsed}"
    return f"{out}: {fitted}, from {texts.size:,} tokens of {source.name}"

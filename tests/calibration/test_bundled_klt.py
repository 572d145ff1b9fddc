"""On the bundled model, with its own calibration: the claim that ``klt`` is there for."""

import pytest

from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.models import checkpoint
from kakeya_jax.models.tokenizer import load_tokenizer

CONTEXT = 768
"""Tokens read, the second half of them scored; 508 are coded in the end, and about half of those when it is scored."""


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(2, 0.5), (3, 1.0)])
def test_klt_keeps_more_than_turboquant_in_the_same_bits(bits: int, share: float) -> None:
    """Measured here: 0.09 and 0.14 times the KL."""
    model, params = checkpoint.load("demo")
    calibration = load_calibration(bundled_calibration())
    calibration.check_model(model.config, params)
    tokens = load_tokenizer("demo").encode(bundled_text().read_text(encoding="utf-8")[:4000])[:CONTEXT]
    calibration.check_text(tokens)
    turboquant, klt = evaluate(
        model,
        params,
        tokens,
        (f"turboquant-{bits}", f"klt-{bits}"),
        context=CONTEXT,
        chunk=CONTEXT,
        warmup=CONTEXT // 2,
        passages=1,
        calibration=calibration,
        encode_time=False,
    ).rows
    assert klt.payload_bits <= turboquant.payload_bits == bits
    assert 0 < klt.kl_mean < share * turboquant.kl_mean

"""Results made up for tests of what is done with results."""

import dataclasses
from typing import Any

import numpy as np

from kakeya_jax.eval import statistics
from kakeya_jax.eval.gates import NAMED_GATES
from kakeya_jax.eval.results import EvalResult, Row


def sample_row(recipe: str, kl: float, *, bits: float = 3.0, seed: int = 0, **changes: Any) -> Row:
    """A row of six passages whose mean KL is about ``kl``."""
    rng = np.random.default_rng(seed)
    passages = kl * (1 + 0.1 * rng.standard_normal(6))
    delta = 0.5 * passages
    percent = float(statistics.delta_ppl_percent(delta.mean()))
    row = Row(
        recipe=recipe,
        recipe_text=f"both={recipe}",
        payload_bits=bits - 0.125,
        all_in_bits=bits,
        bytes_per_token=1000.0 * bits,
        compression_ratio=14 / bits,
        sinks=4,
        recent_min=128,
        recent_max=255,
        ppl=27.0,
        delta_ppl_percent=percent,
        delta_ppl_ci95=(percent - 0.1, percent + 0.1) if np.isfinite(percent) else None,
        kl_mean=float(passages.mean()),
        kl_ci95=statistics.bootstrap_interval(passages),
        kl_p99=10 * kl,
        top1_agreement=0.97,
        verdict=NAMED_GATES["default"].verdict(percent, 0.97),
        encode_seconds=None,
        run_seconds=1.0,
        compile_seconds=2.0,
        passage_delta_nll=tuple(map(float, delta)),
        passage_kl=tuple(map(float, passages)),
    )
    return dataclasses.replace(row, **changes)


def sample_result(*rows: Row, **changes: Any) -> EvalResult:
    """A result of these rows."""
    result = EvalResult(
        protocol="stream",
        context=4096,
        warmup=512,
        passages=6,
        continuation=None,
        tokens_scored=21498,
        reference_ppl=27.193,
        gates=str(NAMED_GATES["default"]),
        dtype="float32",
        cache_dtype="float32",
        rows=rows,
        environment={"date": "2026-11-26", "devices": ["cpu"], "packages": {"jax": "0.10.2", "torch": None}},
        model="house",
        text="book.npy",
        command="kakeya eval house --tokens book.npy --recipe int4",
        text_sha256="a" * 64,
    )
    return dataclasses.replace(result, **changes)

"""Can a fact be recalled from far back, and from how far?"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import accounting
from kakeya_jax.cache import CompressedCache
from kakeya_jax.eval import statistics
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup, Size
from kakeya_jax.eval.ablations.recipe_cells import LabelledRecipe, coded_bits, interval, number
from kakeya_jax.eval.protocols import default_chunk, prefill
from kakeya_jax.eval.text import cut_passages
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.typing import Array, Float, Int

DEPTHS = (0.1, 0.3, 0.5, 0.7)
"""Where in a passage the fact is planted, from its beginning."""

CUE, ANSWER = 8, 16
"""Tokens of a fact that are given again in the end, and that are then to be recalled."""

RECALLS = 0.5
"""Share of tokens; a dense model below it is named as one that does not recall."""

_CONTROL = "dense, no fact planted"
_RECIPES = {
    "identity": "both=identity",
    "int8": "both=int8",
    "int4": "both=int4",
    "kivi, 2 bits": "both=kivi",
    "turboquant, 4 bits": "both=turboquant(bits=4)",
    "turboquant, 3 bits": "both=turboquant(bits=3)",
    "turboquant, 2 bits": "both=turboquant(bits=2)",
    "klt, 2 bits": "both=klt(bits=2)",
    "klt, 1 bit": "both=klt(bits=1)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalCell(LabelledRecipe):
    """A recipe, asked for facts at every depth."""

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"retrieval": self.recipe.to_text(), "depths": DEPTHS, "cue": CUE, "answer": ANSWER}

    def measure(self, setup: Setup) -> Row:
        """Recall, and log-probability of what is to be recalled, dense and compressed, at every depth.

        Raises:
            ValueError: a fact would be planted where the recipe keeps tokens exact.
        """
        config = setup.model.config
        tables = self.tables(setup)
        report = accounting.cache_report(config, self.recipe, max_length=setup.context, tables=tables)
        _check_depths(setup.context, report.exact_tokens[1], report.sinks)
        cache = CompressedCache.init(
            config, self.recipe, batch_size=1, max_length=setup.context, dtype=jnp.float32, tables=tables
        )
        score = jax.jit(functools.partial(_score, setup.model, chunk=default_chunk(setup.context - CUE - ANSWER)))
        texts = planted(setup.tokens, setup.context, setup.passages or 16)
        with jax.default_matmul_precision("highest"):
            scores = [
                [jax.device_get(score(setup.params, cache, jnp.asarray(text))) for text in at_depth]
                for at_depth in texts
            ]
        by_depth = [
            _summary(depth, np.asarray(at_depth, np.float64)) for depth, at_depth in zip(DEPTHS, scores, strict=True)
        ]
        everything = np.concatenate([np.asarray(at_depth, np.float64) for at_depth in scores])
        return {
            "coded_bits": coded_bits(report),
            "compression_ratio": report.compression_ratio,
            "tokens_scored": texts.shape[0] * texts.shape[1] * ANSWER,
            "passages": texts.shape[1],
            "all": _summary(None, everything),
            "depths": by_depth,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlCell:
    """The dense model where no fact was planted: what it guesses, beside what it recalls."""

    label: str

    @property
    def recipe(self) -> None:
        """No recipe: nothing is coded."""
        return

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"retrieval": "control", "depths": DEPTHS, "cue": CUE, "answer": ANSWER}

    def measure(self, setup: Setup) -> Row:
        """As of a recipe: "dense" is with the fact, "recall" and "lost" are without it."""
        with_fact = planted(setup.tokens, setup.context, setup.passages or 16)
        without = end_only(setup.tokens, setup.context, setup.passages or 16)
        recall = jax.jit(functools.partial(_dense_recall, setup.model))
        with jax.default_matmul_precision("highest"):
            guessed = [jax.device_get(recall(setup.params, jnp.asarray(text))) for text in without]
            scores = np.asarray(
                [
                    [(*jax.device_get(recall(setup.params, jnp.asarray(text))), *guess) for text, guess in pairs]
                    for pairs in (zip(at_depth, guessed, strict=True) for at_depth in with_fact)
                ],
                np.float64,
            )
        return {
            "coded_bits": None,
            "compression_ratio": None,
            "tokens_scored": with_fact.shape[0] * with_fact.shape[1] * ANSWER,
            "passages": with_fact.shape[1],
            "all": _summary(None, scores.reshape(-1, 4)),
            "depths": [_summary(depth, at_depth) for depth, at_depth in zip(DEPTHS, scores, strict=True)],
        }


def planted(tokens: Int[np.ndarray, " n"], context: int, passages: int) -> Int[np.ndarray, "depths N T"]:
    """Passages in which a fact was planted and is begun again at the end.

    A fact is ``CUE + ANSWER`` tokens drawn from the text at random: nothing but a look back tells how it goes on.
    Planted at a depth it replaces what was there; a passage has the same fact at all depths.
    """
    length = CUE + ANSWER
    texts = end_only(tokens, context, passages)
    facts = texts[:, -length:]
    found = np.repeat(texts[None], len(DEPTHS), axis=0)
    for at_depth, depth in zip(found, DEPTHS, strict=True):
        start = round(depth * context)
        at_depth[:, start : start + length] = facts
    return found


def end_only(tokens: Int[np.ndarray, " n"], context: int, passages: int) -> Int[np.ndarray, "N T"]:
    """The same passages with the fact at their end alone: it was never planted."""
    texts = np.array(cut_passages(tokens, context, passages))
    texts[:, -CUE - ANSWER :] = np.random.default_rng(0).choice(tokens, size=(passages, CUE + ANSWER))
    return texts


def _dense_recall(model: Any, params: Any, tokens: Int[Array, " T"]) -> tuple[Array, Array]:
    """What the dense model recalls, as ``_recall``."""
    logits = model.apply({"params": params}, tokens[None]).logits[0, -ANSWER - 1 : -1]
    return _recall(logits.astype(jnp.float32), tokens[-ANSWER:])


def _score(model: Any, params: Any, cache: CompressedCache, tokens: Int[Array, " T"], *, chunk: int) -> Array:
    """Of the dense model and of the cache: share of the answer's tokens that are likeliest, mean log-probability."""
    filled = prefill(model, params, cache, tokens[: -CUE - ANSWER], chunk=chunk)
    coded = model.apply({"params": params}, tokens[None, -CUE - ANSWER :], cache=filled).logits[0, CUE - 1 : -1]
    answer = tokens[-ANSWER:]
    return jnp.stack([*_dense_recall(model, params, tokens), *_recall(coded.astype(jnp.float32), answer)])


def _recall(logits: Float[Array, "n V"], answer: Int[Array, " n"]) -> tuple[Array, Array]:
    likely = jax.nn.log_softmax(logits)
    return jnp.mean(jnp.argmax(likely, -1) == answer), jnp.mean(jnp.take_along_axis(likely, answer[:, None], -1))


def _summary(depth: float | None, scores: np.ndarray) -> Row:
    """Of scores ``[passages, 4]``; intervals over passages."""
    dense, dense_nats, coded, coded_nats = scores.T
    return {
        "depth": depth,
        "dense_recall": float(dense.mean()),
        "recall": float(coded.mean()),
        "recall_change": float((coded - dense).mean()),
        "recall_change_ci95": statistics.bootstrap_interval(coded - dense),
        "nats_lost": float((dense_nats - coded_nats).mean()),
        "nats_lost_ci95": statistics.bootstrap_interval(dense_nats - coded_nats),
    }


def _check_depths(context: int, exact: int, sinks: int) -> None:
    length = CUE + ANSWER
    first, last = round(min(DEPTHS) * context), round(max(DEPTHS) * context)
    if first < sinks or last + length > context - length - exact:
        raise ValueError(
            f"context={context} is too short: the recipe keeps up to {exact} recent tokens exact, and a fact at depth "
            f"{max(DEPTHS)} would be among them; use at least {round((exact + 2 * length + 1) / (1 - max(DEPTHS)))}"
        )


def _cells(config: ModelConfig, context: int) -> tuple[RetrievalCell | ControlCell, ...]:
    del config, context
    recipes = (RetrievalCell(label=label, text=text) for label, text in _RECIPES.items())
    return ControlCell(label=_CONTROL), *recipes


def _findings(rows: Mapping[str, Row]) -> list[str]:
    control = rows[_CONTROL]["all"]
    recalled, guessed = control["dense_recall"], control["recall"]
    found = [
        f"The dense model recalls {100 * recalled:.1f} % of the tokens, and guesses {100 * guessed:.1f} % where no "
        f"fact was planted; the fact is worth {control['nats_lost']:.3f} nats for each token."
    ]
    if recalled < RECALLS:
        found.append(
            f"That is no recall (below {100 * RECALLS:.0f} %): this model's rows say what compression changes of a "
            "small effect, not whether facts would be kept by a model that recalls them."
        )
    recipes = {label: row for label, row in rows.items() if label != _CONTROL}
    changed = [label for label, row in recipes.items() if (row["all"]["recall_change_ci95"] or (0, 0))[1] < 0]
    found.append(f"Recipes that recall less, beyond chance: {'; '.join(changed) or 'none'}.")
    return found


def _at_depths(row: Row) -> str:
    return " / ".join(f"{100 * each['recall']:.1f}" for each in row["depths"])


ABLATION = Ablation(
    name="retrieval",
    question="Can a fact be recalled from far back through a compressed cache, and from how far?",
    claims=("KakeyaLattice: its D4 lattice keeps 27 of 27 needles of Qwen3-4B and of GLM",),
    cells=_cells,
    columns=(
        Column(title="bits/value, all-in", text=lambda row: number(row["coded_bits"])),
        Column(title="dense recall %", text=lambda row: f"{100 * row['all']['dense_recall']:.1f}"),
        Column(title=f"recall % at depths {' / '.join(map(str, DEPTHS))}", text=_at_depths),
        Column(
            title="change of recall, points [95 %]",
            text=lambda row: interval(
                100 * row["all"]["recall_change"],
                [100 * end for end in row["all"]["recall_change_ci95"] or ()] or None,
                "+.1f",
            ),
        ),
        Column(
            title="nats lost for each token [95 %]",
            text=lambda row: interval(row["all"]["nats_lost"], row["all"]["nats_lost_ci95"], "+.4f"),
        ),
    ),
    findings=_findings,
    notes=(
        f"A fact is {CUE + ANSWER} random tokens of the text. It is planted outside the exact window; at the end its "
        f"first {CUE} tokens come again, and the other {ANSWER} are scored, each given those before it. Small models "
        "recall imperfectly without any compression: the dense model's own recall stands beside each row.",
        f"The row *{_CONTROL}* codes nothing: its recall is of the same texts where the fact was never planted.",
    ),
    demo=Size(context=2048, passages=8),
    usual=Size(context=4096, passages=16),
    seconds=60.0,
)

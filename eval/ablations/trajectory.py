"""How long does greedy decoding through a compressed cache say what the dense model says?"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import accounting
from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.eval import statistics
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup, Size
from kakeya_jax.eval.ablations.recipe_cells import LabelledRecipe, coded_bits, interval, number
from kakeya_jax.eval.text import cut_passages
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.generate import generate
from kakeya_jax.models.sampling import sample
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array, Bool, Int

STEPS = 256
"""Tokens that are decoded."""

SEED = 0
"""Of the draws, the same for the dense model and all recipes."""

_RECIPES = {
    "identity": "both=identity",
    "int8": "both=int8",
    "int4": "both=int4",
    "kivi, 4 bits": "both=kivi(bits=4)",
    "kivi, 2 bits": "both=kivi",
    "turboquant, 4 bits": "both=turboquant(bits=4)",
    "turboquant, 3 bits": "both=turboquant(bits=3)",
    "klt, 4 bits": "both=klt(bits=4)",
    "klt, 2 bits": "both=klt(bits=2)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryCell(LabelledRecipe):
    """A recipe that continues prompts, beside the dense model: greedily, and drawing with the same random numbers."""

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"trajectory": self.recipe.to_text(), "steps": STEPS, "drawn_with_seed": SEED}

    def measure(self, setup: Setup) -> Row:
        """Steps until the first difference, and agreement when fed what the dense model says.

        Of greedy texts: ``agreed_steps`` (mean over prompts) with its interval and ``agreed_steps_of`` every prompt,
        ``agreed_to_the_end`` (prompts), ``fed_agreement`` with its interval (shares of tokens). ``drawn`` holds the
        same of texts drawn at temperature 1. ``distinct_share`` (see there) is that of the recipe's greedy text, of
        the dense model's greedy and drawn text, and of as many tokens at the end of the prompts (all of shorter ones).

        Raises:
            ValueError: the context has no room for a prompt before the decoded tokens.
        """
        if setup.context <= STEPS:
            raise ValueError(f"context={setup.context} must be more than the {STEPS} tokens that are decoded")
        config = setup.model.config
        tables = self.tables(setup)
        prompts = jnp.asarray(cut_passages(setup.tokens, setup.context, setup.passages or 16)[:, : -STEPS or None])

        def cache_of(recipe: Recipe, tables: Any = None) -> CompressedCache:
            return CompressedCache.init(
                config, recipe, batch_size=len(prompts), max_length=setup.context, dtype=jnp.float32, tables=tables
            )

        def said_by(cache: CompressedCache, temperature: float) -> Int[np.ndarray, "B n"]:
            options = {"max_new_tokens": STEPS, "temperature": temperature, "seed": SEED}
            return np.asarray(generate(setup.model, setup.params, prompts, cache=cache, **options).tokens)

        with jax.default_matmul_precision("highest"):
            dense, drawn = (said_by(cache_of(dense_recipe(setup.context)), temperature) for temperature in (0.0, 1.0))
            own = said_by(cache_of(self.recipe, tables), 0.0)
            fed = jax.jit(functools.partial(choices, setup.model))(
                setup.params, cache_of(self.recipe, tables), prompts, jnp.stack([dense, drawn])
            )
        report = accounting.cache_report(config, self.recipe, max_length=setup.context, tables=tables)
        return {
            "coded_bits": coded_bits(report),
            "compression_ratio": report.compression_ratio,
            "tokens_scored": int(dense.size),
            "passages": len(prompts),
            **_agreement(agreed_steps(dense, own), np.asarray(fed[0, 0]) == dense),
            # Fed what the dense model drew, both have read the same until the first difference.
            "drawn": _agreement(agreed_steps(drawn, np.asarray(fed[1, 1])), np.asarray(fed[1, 1]) == drawn),
            "distinct_share": {
                "own": distinct_share(own),
                "dense": distinct_share(dense),
                "dense_drawn": distinct_share(drawn),
                "prompt": distinct_share(np.asarray(prompts[:, -STEPS:])),
            },
        }


def agreed_steps(first: Int[np.ndarray, "B n"], second: Int[np.ndarray, "B n"]) -> Int[np.ndarray, " B"]:
    """Tokens of each row before the first that differs; all of them if none does."""
    differs: Bool[np.ndarray, "B n"] = first != second
    return np.where(differs.any(axis=1), differs.argmax(axis=1), first.shape[1])


def distinct_share(tokens: Int[np.ndarray, "B n"]) -> float:
    """Different tokens of a text over all its tokens, mean over texts: 1 if none comes twice, 1 / n if all are one."""
    return float(np.mean([len(np.unique(text)) / len(text) for text in tokens]))


def choices(
    model: Any, params: Any, cache: CompressedCache, prompts: Int[Array, "B T"], texts: Int[Array, "texts B n"]
) -> Int[Array, "texts 2 B n"]:
    """The likeliest token at every step, and the one that ``generate`` draws, if all steps before said each text."""
    first, cache = model.apply({"params": params}, prompts, cache=cache, last_only=True)
    keys = jax.random.split(jax.random.key(SEED), texts.shape[-1])

    def after(text: Int[Array, "B n"]) -> Int[Array, "2 B n"]:
        rest, _ = model.apply({"params": params}, text[:, :-1], cache=cache)
        logits = jnp.concatenate([first, rest], axis=1)
        drawn = jax.vmap(functools.partial(sample, temperature=1.0), in_axes=(1, 0), out_axes=1)(logits, keys)
        return jnp.stack([jnp.argmax(logits, -1).astype(drawn.dtype), drawn])

    return jax.lax.map(after, texts)


def _agreement(steps: Int[np.ndarray, " B"], same: Bool[np.ndarray, "B n"]) -> dict[str, Any]:
    kept = np.mean(same, axis=1)
    return {
        "agreed_steps": float(steps.mean()),
        "agreed_steps_ci95": statistics.bootstrap_interval(steps),
        "agreed_to_the_end": int(np.sum(steps == same.shape[1])),
        "fed_agreement": float(kept.mean()),
        "fed_agreement_ci95": statistics.bootstrap_interval(kept),
        "agreed_steps_of": steps.tolist(),
    }


def _cells(config: ModelConfig, context: int) -> tuple[TrajectoryCell, ...]:
    del config, context
    return tuple(TrajectoryCell(label=label, text=text) for label, text in _RECIPES.items())


def _findings(rows: Mapping[str, Row]) -> list[str]:
    whole = [f"{label} ({row['agreed_to_the_end']})" for label, row in rows.items() if row["agreed_to_the_end"]]
    row = next(iter(rows.values()))
    distinct = row["distinct_share"]
    return [
        f"Prompts of {row['passages']} whose {STEPS} greedy tokens are those of the dense model: "
        f"{'; '.join(whole) or 'none'}.",
        f"Distinct tokens: {distinct['dense']:.1%} of the dense model's greedy text, {distinct['dense_drawn']:.1%} of "
        f"the text that it draws, {distinct['prompt']:.1%} of the end of the prompts.",
    ]


def _steps(row: Row) -> str:
    return interval(row["agreed_steps"], row["agreed_steps_ci95"], ".0f")


def _fed(row: Row) -> str:
    return interval(100 * row["fed_agreement"], [100 * end for end in row["fed_agreement_ci95"] or ()] or None)


def _distinct(row: Row) -> str:
    return f"{100 * row['distinct_share']['dense']:.1f} / {100 * row['distinct_share']['own']:.1f}"


ABLATION = Ablation(
    name="trajectory",
    question="How long does greedy decoding through a compressed cache say what the dense model says?",
    claims=(
        "turboquant_plus (REFRACT): agreement of greedy trajectories shows what perplexity hides",
        "A. Verma's posts: a surviving argmax is no gate",
    ),
    cells=_cells,
    columns=(
        Column(title="bits/value, all-in", text=lambda row: number(row["coded_bits"])),
        Column(title="ratio of the cache", text=lambda row: number(row["compression_ratio"], ".2f")),
        Column(title="distinct tokens of greedy text, dense / own, %", text=_distinct),
        Column(title=f"steps of {STEPS} before the first difference [95 %]", text=_steps),
        Column(title="prompts without any", text=lambda row: f"{row['agreed_to_the_end']} of {row['passages']}"),
        Column(title="agreement, fed the dense tokens, % [95 %]", text=_fed),
        Column(title="drawn: steps before the first difference [95 %]", text=lambda row: _steps(row["drawn"])),
        Column(title="drawn: agreement, fed the dense tokens, % [95 %]", text=lambda row: _fed(row["drawn"])),
    ),
    findings=_findings,
    notes=(
        "After the first difference two texts go their own ways, so steps before it say how rare a difference is, not "
        "how bad. Fed: every step reads what the dense model said before it. The exact window is the standard one; "
        "`identity` rounds keys and values to bfloat16.",
        "Distinct tokens: the different tokens of a text over all of them. Text that repeats itself has few, and "
        "agreement on it comes easily: its next token is that of the round before. So the last two columns are of "
        "other text: the dense model and the recipe *draw* from their whole distributions (temperature 1) with the "
        "same random numbers, so that equal logits say the same.",
    ),
    demo=Size(context=1024, passages=8),
    usual=Size(context=2048, passages=32),
    seconds=70.0,
)

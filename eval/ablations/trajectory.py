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
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array, Bool, Int

STEPS = 256
"""Tokens that are decoded."""

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
    """A recipe that decodes greedily, beside the dense model."""

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"trajectory": self.recipe.to_text(), "steps": STEPS}

    def measure(self, setup: Setup) -> Row:
        """Steps until the first difference, and agreement when fed what the dense model says.

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

        with jax.default_matmul_precision("highest"):
            said = [
                np.asarray(generate(setup.model, setup.params, prompts, max_new_tokens=STEPS, cache=cache).tokens)
                for cache in (cache_of(dense_recipe(setup.context)), cache_of(self.recipe, tables))
            ]
            fed = jax.jit(functools.partial(_likeliest, setup.model))(
                setup.params, cache_of(self.recipe, tables), prompts, jnp.asarray(said[0])
            )
        same = agreed_steps(said[0], said[1])
        kept = np.mean(np.asarray(fed) == said[0], axis=1)
        report = accounting.cache_report(config, self.recipe, max_length=setup.context, tables=tables)
        return {
            "coded_bits": coded_bits(report),
            "compression_ratio": report.compression_ratio,
            "tokens_scored": int(kept.size * STEPS),
            "passages": len(prompts),
            "agreed_steps": float(same.mean()),
            "agreed_steps_ci95": statistics.bootstrap_interval(same),
            "agreed_to_the_end": int(np.sum(same == STEPS)),
            "fed_agreement": float(kept.mean()),
            "fed_agreement_ci95": statistics.bootstrap_interval(kept),
            "agreed_steps_of": same.tolist(),
        }


def agreed_steps(first: Int[np.ndarray, "B n"], second: Int[np.ndarray, "B n"]) -> Int[np.ndarray, " B"]:
    """Tokens of each row before the first that differs; all of them if none does."""
    differs: Bool[np.ndarray, "B n"] = first != second
    return np.where(differs.any(axis=1), differs.argmax(axis=1), first.shape[1])


def _likeliest(
    model: Any, params: Any, cache: CompressedCache, prompts: Int[Array, "B T"], said: Int[Array, "B n"]
) -> Int[Array, "B n"]:
    """The likeliest token at every step, if all steps before said what ``said`` holds."""
    logits, cache = model.apply({"params": params}, prompts, cache=cache)
    rest, _ = model.apply({"params": params}, said[:, :-1], cache=cache)
    return jnp.concatenate([jnp.argmax(logits[:, -1:], -1), jnp.argmax(rest, -1)], axis=1)


def _cells(config: ModelConfig, context: int) -> tuple[TrajectoryCell, ...]:
    del config, context
    return tuple(TrajectoryCell(label=label, text=text) for label, text in _RECIPES.items())


def _findings(rows: Mapping[str, Row]) -> list[str]:
    whole = [f"{label} ({row['agreed_to_the_end']})" for label, row in rows.items() if row["agreed_to_the_end"]]
    count = next(iter(rows.values()))["passages"]
    return [f"Prompts of {count} whose {STEPS} tokens are those of the dense model: {'; '.join(whole) or 'none'}."]


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
        Column(
            title=f"steps of {STEPS} before the first difference [95 %]",
            text=lambda row: interval(row["agreed_steps"], row["agreed_steps_ci95"], ".0f"),
        ),
        Column(title="prompts without any", text=lambda row: f"{row['agreed_to_the_end']} of {row['passages']}"),
        Column(
            title="agreement, fed the dense tokens, % [95 %]",
            text=lambda row: interval(
                100 * row["fed_agreement"], [100 * end for end in row["fed_agreement_ci95"] or ()] or None
            ),
        ),
    ),
    findings=_findings,
    notes=(
        "After the first difference two texts go their own ways, so steps before it say how rare a difference is, not "
        "how bad. The last column feeds every step what the dense model said before it. The exact window is the "
        "standard one; `identity` rounds keys and values to bfloat16.",
    ),
    demo=Size(context=1024, passages=8),
    usual=Size(context=2048, passages=32),
    seconds=70.0,
)

"""Does the loss grow with the context?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup, Size
from kakeya_jax.eval.ablations.recipe_cells import BITS, DELTA, KL, RATIO, TOP1, RecipeCell, interval
from kakeya_jax.models.config import ModelConfig

CONTEXTS = (1024, 2048, 4096, 8192, 16384)
"""Of passages, as far as a model's own reaches."""

SCORED = 512
"""Last predictions of a passage: those that read the longest past."""

_RECIPES = {
    "int4": "both=int4",
    "kivi, 2 bits": "both=kivi",
    "turboquant, 3 bits": "both=turboquant(bits=3)",
    "klt, 2 bits": "both=klt(bits=2)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextCell(RecipeCell):
    """A recipe at a context of its own, of which only the end is scored.

    Attributes:
        context: tokens of a passage.
    """

    context: int

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {**super().request(), "context": self.context, "scored": SCORED}

    def sizes(self, setup: Setup) -> dict[str, Any]:
        """See ``RecipeCell``."""
        del setup
        return {"context": self.context, "warmup": max(0, self.context - 1 - SCORED)}


def contexts_of(config: ModelConfig) -> tuple[int, ...]:
    """The contexts that a model reaches; at least the shortest."""
    return tuple(each for each in CONTEXTS if each <= config.max_position_embeddings) or CONTEXTS[:1]


def _cells(config: ModelConfig, context: int) -> tuple[ContextCell, ...]:
    del context
    return tuple(
        ContextCell(label=f"{name}, {each} tokens", text=text, context=each)
        for name, text in _RECIPES.items()
        for each in contexts_of(config)
    )


def _findings(rows: Mapping[str, Row]) -> list[str]:
    found = []
    for name in _RECIPES:
        of_recipe = {int(label.split()[-2]): row for label, row in rows.items() if label.startswith(f"{name}, ")}
        if len(of_recipe) < 2:
            continue
        shortest, longest = of_recipe[min(of_recipe)]["kl_mean"], of_recipe[max(of_recipe)]["kl_mean"]
        if shortest and longest:
            found.append(
                f"{name}: KL at {max(of_recipe)} tokens is {longest / shortest:.2f} times that at {min(of_recipe)}."
            )
    return found


ABLATION = Ablation(
    name="context",
    question="Does the loss grow with the context?",
    claims=(
        "KakeyaTurbo and its peers report perplexity at one short context; none shows how the loss moves with its "
        "length",
    ),
    cells=_cells,
    columns=(
        BITS,
        RATIO,
        Column(title="dense perplexity", text=lambda row: interval(row["reference_ppl"], None)),
        DELTA,
        KL,
        TOP1,
    ),
    findings=_findings,
    notes=(
        f"The last {SCORED} predictions of each passage are scored, so rows have equally many. Contexts differ, and "
        "so do the passages: compare recipes at one context, or one recipe's KL between contexts. With the standard "
        "exact window, a shorter context has a larger share of its tokens exact.",
    ),
    demo=Size(context=4096, passages=4),
    usual=Size(context=4096, passages=8),
    seconds=12.0,
)

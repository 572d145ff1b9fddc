"""How much of the cache can a decode step leave unread?"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.eval import selectors
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup
from kakeya_jax.eval.ablations.recipe_cells import number
from kakeya_jax.eval.ablations.step_rows import STEP_COLUMNS, passing, step_row
from kakeya_jax.eval.decode_steps import measure_steps, step_passages
from kakeya_jax.models.altered import AlteredCache, StepInputs
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.typing import Array, Bool, Float

CHUNK = 32
SINKS = 4
_SHARES = (0.5, 0.25, 0.125)

Select = Callable[[StepInputs, Float[Array, "B K G n T"]], Bool[Array, "B #K #G n T"]]
"""From the inputs and the logits to the tokens that are read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionCell:
    """One selector; ``name`` is its function, ``share`` its budget as a share of the context, or of the mass."""

    label: str
    name: str
    share: float

    @property
    def recipe(self) -> None:
        """No recipe: keys and values are exact."""
        return

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"selector": self.name, "share": self.share, "chunk": CHUNK, "sinks": SINKS}

    def measure(self, setup: Setup) -> Row:
        """The last half of every passage as decode steps that read what the selector keeps."""
        if setup.context % (2 * CHUNK):
            raise ValueError(f"selectors: context={setup.context} must be a multiple of two chunks, {2 * CHUNK} tokens")
        steps = setup.context // 2
        passages = step_passages(setup.tokens, setup.context, setup.passages, steps)
        select = _SELECT[self.name](self.share, setup.context)
        metrics = measure_steps(setup.model, setup.params, passages, partial(_attend, select), steps=steps)
        return step_row(metrics) | {
            "passages": len(passages),
            "read_share": _read_share(setup, passages[0], select, steps),
        }


def selected_attention(inputs: StepInputs, select: Select) -> tuple[Float[Array, "B K G n D"], Float[Array, ""]]:
    """Attention over the selected tokens alone, and the share of the causal tokens that they are.

    The selector is given the exact logits; only oracles use them.
    """
    logits = inputs.logits()
    causal = logits > -jnp.inf
    kept = jnp.broadcast_to(select(inputs, logits), logits.shape) & causal
    weights = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bkgnt,bktd->bkgnd", weights, inputs.value), jnp.mean(kept) / jnp.mean(causal)


def _attend(select: Select, state: None, inputs: StepInputs) -> Float[Array, "B K G n D"]:
    del state
    return selected_attention(inputs, select)[0]


def _read_share(setup: Setup, tokens: np.ndarray, select: Select, steps: int) -> float:
    """Mean over layers of the share of the causal tokens that one passage's steps read."""

    def attend(state: None, inputs: StepInputs) -> Array:
        out, share = selected_attention(inputs, select)
        return jnp.full_like(out, share)

    cache = AlteredCache.of(attend, (None,) * setup.model.config.num_layers, steps=steps)
    run = jax.jit(lambda params, cache, tokens: setup.model.apply({"params": params}, tokens[None], cache=cache).cache)
    ran = run(setup.params, cache, jnp.asarray(tokens))
    return float(np.mean([float(layer.altered.mean()) for layer in ran.layers]))


def _latest(inputs: StepInputs) -> Array:
    """Positions of the last queries ``[B, n]``."""
    return inputs.positions[:, -inputs.query.shape[3] :]


def _window(inputs: StepInputs, recent: int) -> Array:
    return selectors.recent_sink(_latest(inputs), inputs.positions, sinks=SINKS, recent=recent)


def _weights(logits: Array) -> Array:
    return jax.nn.softmax(logits, axis=-1)


def _all(share: float, context: int) -> Select:
    del share, context
    return lambda inputs, logits: logits > -jnp.inf


def _recent_sink(share: float, context: int) -> Select:
    return lambda inputs, logits: _window(inputs, int(share * context) - SINKS)


def _global_block_mass(share: float, context: int) -> Select:
    keep = _chunks(share, context)
    return lambda inputs, logits: (
        selectors.global_block_mass(_weights(logits), chunk=CHUNK, keep=keep) | _window(inputs, CHUNK)
    )


def _chunk_means(share: float, context: int) -> Select:
    keep = _chunks(share, context)

    def select(inputs: StepInputs, logits: Array) -> Array:
        del logits
        chosen = selectors.chunk_means(inputs.query, inputs.key, _latest(inputs), chunk=CHUNK, keep=keep)
        return chosen | _window(inputs, CHUNK)

    return select


def _active_chunks(share: float, context: int) -> Select:
    del context
    return lambda inputs, logits: selectors.active_chunks(_weights(logits), chunk=CHUNK, share=share)


def _chunks(share: float, context: int) -> int:
    """Chunks of a budget, with the window of one chunk taken off."""
    return max(1, int(share * context) // CHUNK - 1)


_SELECT: dict[str, Callable[[float, int], Select]] = {
    "all": _all,
    "recent_sink": _recent_sink,
    "global_block_mass": _global_block_mass,
    "chunk_means": _chunk_means,
    "active_chunks": _active_chunks,
}


def _cells(config: ModelConfig, context: int) -> tuple[SelectionCell, ...]:
    del config, context
    cells = [SelectionCell(label="everything", name="all", share=1.0)]
    for name, title in (
        ("recent_sink", "recent and sinks"),
        ("chunk_means", "chunk means"),
        ("global_block_mass", "chunks by mass of all heads (oracle)"),
    ):
        cells += [
            SelectionCell(label=f"{title}, {100 * share:g} % of the context", name=name, share=share)
            for share in _SHARES
        ]
    cells += [
        SelectionCell(label=f"active chunks, {100 * share:g} % of the mass (oracle)", name="active_chunks", share=share)
        for share in (0.9, 0.99, 0.999)
    ]
    return tuple(cells)


ABLATION = Ablation(
    name="selectors",
    question="How much of the cache can a decode step leave unread and still pass the gates at every step?",
    claims=(
        "A. Verma's posts: work reduction has to pass a quality gate at every decode step before its speed counts",
    ),
    cells=_cells,
    columns=(
        Column(title="read, % of the past", text=lambda row: number(100 * row["read_share"], ".1f")),
        *STEP_COLUMNS,
    ),
    findings=passing,
    notes=(
        f"Exact keys and values; the last half of every passage are decode steps, in all layers. Chunks have {CHUNK} "
        f"tokens; rules for chunks also read {SINKS} sinks and the latest {CHUNK} tokens. An oracle knows the weights "
        "that it is there to save.",
        "The posts judged four steps, this thousands: one whose two likeliest tokens change places fails its row.",
    ),
    gates=True,
    seconds=10.0,
)

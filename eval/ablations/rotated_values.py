"""What does summing rotated values before rotating them back save, and does it change anything?"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.calibration.codec_tables import dense_vectors
from kakeya_jax.codecs.turboquant import TurboQuantConfig
from kakeya_jax.eval import rotated_values
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup, Size
from kakeya_jax.eval.ablations.recipe_cells import number
from kakeya_jax.eval.text import cut_passages
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.rope import apply_rope
from kakeya_jax.rotation import RotationKind
from kakeya_jax.typing import Array, Float

_REPEATS = 31


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedValuesCell:
    """One rotation and width, over the real values and attention weights of every layer."""

    label: str
    rotation: RotationKind
    bits: int

    @property
    def recipe(self) -> None:
        """No recipe: only a weighted sum is taken."""
        return

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"rotated_values": self.rotation, "bits": self.bits}

    def measure(self, setup: Setup) -> Row:
        """Error, arithmetic and time of the last query's weighted sum, all heads of all layers."""
        values, weights = _real_values(setup)
        layers, heads, queries, tokens = weights.shape
        dim = values.shape[-1]
        codec = TurboQuantConfig(bits=self.bits, rotation=self.rotation, block_size=1).build(dim, stream="value")
        code = jax.jit(jax.vmap(jax.vmap(codec.encode)))(values)

        def over_heads(one: Callable[..., Array]) -> Callable[..., Array]:
            return jax.jit(jax.vmap(jax.vmap(lambda code, weights: one(codec, code, weights))))

        slow, fast = over_heads(rotated_values.decode_then_sum), over_heads(rotated_values.sum_then_rotate)
        first, second = np.asarray(slow(code, weights), np.float64), np.asarray(fast(code, weights), np.float64)
        error = np.linalg.norm(first - second) / np.linalg.norm(first)
        slow_seconds, fast_seconds = _times((slow, fast), code, weights)
        counts = rotated_values.multiplications(tokens, queries, dim)
        return {
            "tokens_scored": layers * heads * queries,
            "relative_difference": float(error),
            "multiplications": {"decode_then_sum": counts[0], "sum_then_rotate": counts[1]},
            "seconds_of_sum": {"decode_then_sum": slow_seconds, "sum_then_rotate": fast_seconds},
            "shape": {"layers": layers, "heads": heads, "queries": queries, "tokens": tokens, "dim": dim},
        }


def _real_values(setup: Setup) -> tuple[Float[Array, "L K T D"], Float[Array, "L K G T"]]:
    """Values of a passage, and the attention weights of its last query."""
    tokens = jnp.asarray(cut_passages(setup.tokens, setup.context, 1)[0])
    layers = jax.jit(lambda params: dense_vectors(setup.model, params, tokens))(setup.params)
    rope, positions = setup.model.config.rope, jnp.arange(len(tokens), dtype=jnp.int32)
    weights = []
    for layer in layers:
        key = apply_rope(layer["key"], positions, rope)
        query = apply_rope(layer["query"][:, -1:], positions[-1:], rope)[:, 0]
        grouped = query.reshape(key.shape[0], -1, key.shape[-1])
        logits = jnp.einsum("kgd,ktd->kgt", grouped, key) * key.shape[-1] ** -0.5
        weights.append(jax.nn.softmax(logits, axis=-1))
    return jnp.stack([layer["value"] for layer in layers]), jnp.stack(weights)


def _times(functions: tuple[Callable[..., Array], ...], *arguments: Any) -> list[float]:
    """Median seconds of each, called in turn so that what else runs on the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(_REPEATS):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def _cells(config: ModelConfig, context: int) -> tuple[RotatedValuesCell, ...]:
    del config, context
    return tuple(
        RotatedValuesCell(label=f"{rotation}, {bits} bits", rotation=rotation, bits=bits)
        for rotation in ("haar", "hadamard")
        for bits in (2, 4)
    )


def _ratio(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: number(row[name]["decode_then_sum"] / row[name]["sum_then_rotate"], form)


ABLATION = Ablation(
    name="rotated-values",
    question="What does summing rotated values before rotating them back save, and is the sum the same?",
    claims=(
        "A. Verma's posts: values need not be decoded one by one; a weighted sum commutes with the rotation, exactly",
    ),
    cells=_cells,
    columns=(
        Column(title="relative difference", text=lambda row: number(row["relative_difference"], ".1e")),
        Column(title="multiplications saved, times", text=_ratio("multiplications", ".1f")),
        Column(title="time saved, times", text=_ratio("seconds_of_sum", ".2f")),
    ),
    notes=(
        "Real values of one passage, in all layers, under the attention weights of its last query. Multiplications of "
        f"a head's queries, without unpacking; times are medians of {_REPEATS} calls, both ways in turn.",
    ),
    demo=Size(context=2048, passages=1),
    usual=Size(context=4096, passages=1),
    seconds=5.0,
)

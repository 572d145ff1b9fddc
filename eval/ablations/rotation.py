"""Could a rotation chosen for each block make directions fit better (the Perron-tree question)?"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kakeya_jax import pca
from kakeya_jax.directions import direction_table, directions_at, nearest_direction
from kakeya_jax.eval import statistics
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup
from kakeya_jax.eval.ablations.real_vectors import BLOCK, real_blocks
from kakeya_jax.eval.ablations.recipe_cells import interval, number
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.rotation import haar_rotation, hadamard_rotation
from kakeya_jax.typing import Array, Float

DIRECTION_BITS = 3
DRAWS = 32
ANGLES = 16
STEPS = 100
_LEARNING_RATE = 0.02

Turn = Callable[[Float[Array, "n D"]], Float[Array, ""]]
"""From a block's deviations to the error energy after some rotation of them."""


def direction_error(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """Energy lost if every pair of coordinates keeps its exact magnitude and takes the nearest of 8 directions."""
    pairs = x.reshape(x.shape[0], -1, 2)
    table = jnp.asarray(direction_table(2, DIRECTION_BITS))
    index, magnitude = nearest_direction(pairs, table)
    return jnp.sum((pairs - magnitude[..., None] * directions_at(table, index)) ** 2)


def best_of_draws(x: Float[Array, "n D"], *, draws: int = DRAWS) -> Float[Array, ""]:
    """The least error of ``draws`` random rotations: an oracle that may choose for each block."""
    return jnp.min(_of_draws(x, draws))


def mean_of_draws(x: Float[Array, "n D"], *, draws: int = DRAWS) -> Float[Array, ""]:
    """The mean error of ``draws`` random rotations: what a fixed one can expect."""
    return jnp.mean(_of_draws(x, draws))


def hadamard_turned(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """The error after random signs and a Walsh-Hadamard transform."""
    return direction_error(x @ jnp.asarray(hadamard_rotation(x.shape[1], 0)).T)


def pca_turned(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """The error in the block's principal components, strongest with next strongest."""
    return direction_error(x @ pca.exact_pca(x, x.shape[1]).basis.T)


def best_angles(x: Float[Array, "n D"], *, angles: int = ANGLES) -> Float[Array, ""]:
    """Each pair of coordinates with its table of directions turned by the best of ``angles`` offsets: an oracle."""
    pairs = x.reshape(x.shape[0], -1, 2)
    table = jnp.asarray(direction_table(2, DIRECTION_BITS))

    def turned(angle: Array) -> Float[Array, " G"]:
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        rotated = jnp.stack(
            [cosine * pairs[..., 0] - sine * pairs[..., 1], sine * pairs[..., 0] + cosine * pairs[..., 1]], -1
        )
        index, magnitude = nearest_direction(rotated, table)
        return jnp.sum((rotated - magnitude[..., None] * directions_at(table, index)) ** 2, axis=(0, 2))

    offsets = jnp.arange(angles) * (math.pi / 2**DIRECTION_BITS / angles)
    return jnp.sum(jnp.min(jax.lax.map(turned, offsets), axis=0))


def optimised(x: Float[Array, "n D"], *, steps: int = STEPS) -> Float[Array, ""]:
    """The least error that gradient descent over rotations finds, from none: an oracle.

    Rotations are ``(I + A)^-1 (I - A)`` of skew matrices ``A``; directions are chosen anew at every step, and are
    constant for the gradient.
    """
    dim = x.shape[1]
    optimizer = optax.adam(_LEARNING_RATE)

    def loss(free: Array) -> Array:
        skew = free - free.T
        turn = jnp.linalg.solve(jnp.eye(dim) + skew, jnp.eye(dim) - skew)
        return direction_error(jnp.matmul(x, turn.T, precision="highest")) / jnp.sum(x * x)

    def step(carry: tuple[Array, Any, Array], _: None) -> tuple[tuple[Array, Any, Array], None]:
        free, state, best = carry
        value, gradient = jax.value_and_grad(loss)(free)
        updates, state = optimizer.update(gradient, state)
        return (jnp.asarray(optax.apply_updates(free, updates)), state, jnp.minimum(best, value)), None

    start = jnp.zeros((dim, dim))
    (_, _, best), _ = jax.lax.scan(step, (start, optimizer.init(start), jnp.float32(jnp.inf)), length=steps)
    return best * jnp.sum(x * x)


def _of_draws(x: Array, draws: int) -> Float[Array, " draws"]:
    turns = jnp.asarray(np.stack([haar_rotation(x.shape[1], seed) for seed in range(draws)]))
    return jax.lax.map(lambda turn: direction_error(jnp.matmul(x, turn.T, precision="highest")), turns)


_TURNS: dict[str, tuple[str, Turn]] = {
    "none": ("none", direction_error),
    "random": (f"random, mean of {DRAWS}", mean_of_draws),
    "hadamard": ("Hadamard", hadamard_turned),
    "pca": ("principal components", pca_turned),
    "best": (f"best of {DRAWS} random (oracle)", best_of_draws),
    "angles": ("best angle of every pair (oracle)", best_angles),
    "optimised": ("optimised (oracle)", optimised),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotationCell:
    """One way to turn the blocks of a stream."""

    label: str
    stream: str
    turn: str

    @property
    def recipe(self) -> None:
        """No recipe: nothing runs through a cache."""
        return

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"rotation": self.turn, "stream": self.stream, "draws": DRAWS, "angles": ANGLES, "steps": STEPS}

    def measure(self, setup: Setup) -> Row:
        """Error as a share of the energy around block means, and over that without rotation, block by block."""
        found = real_blocks(setup, self.stream)
        blocks = jnp.asarray(found.vectors)
        flat = blocks.reshape(-1, *blocks.shape[-2:])
        deviations = flat - flat.mean(axis=1, keepdims=True)
        errors = np.asarray(_mapped(_TURNS[self.turn][1], deviations), np.float64)
        plain = np.asarray(_mapped(direction_error, deviations), np.float64)
        ratio = np.log(errors / plain)
        size, dim = flat.shape[1:]
        return {
            "tokens_scored": blocks.shape[2] * size,
            "passages": found.passages,
            "blocks": len(flat),
            "relative_error": float(errors.sum() / float(jnp.sum(deviations**2))),
            "ratio": float(np.exp(ratio.mean())),
            "ratio_ci95": statistics.bootstrap_interval(ratio, np.exp),
            "bits_if_stored": 16 * dim / size,
        }


@functools.partial(jax.jit, static_argnums=0)
def _mapped(turn: Turn, deviations: Float[Array, "b n D"]) -> Float[Array, " b"]:
    return jax.lax.map(turn, deviations, batch_size=16)


def _cells(config: ModelConfig, context: int) -> tuple[RotationCell, ...]:
    del config, context
    return tuple(
        RotationCell(label=f"{short}: {title}", stream=stream, turn=turn)
        for short, stream in (("V", "value"), ("K", "key"))
        for turn, (title, _) in _TURNS.items()
    )


_ISOTROPIC = 0.5 - math.sin(math.pi / 2**DIRECTION_BITS) * 2**DIRECTION_BITS / (2 * math.pi)

ABLATION = Ablation(
    name="besicovitch-rotation",
    question="Would a rotation for each block, as a Perron tree turns its needles, make directions fit better?",
    claims=("KakeyaTurbo: the name's Besicovitch sets suggest that few directions in the right place cover all",),
    cells=_cells,
    columns=(
        Column(title="direction error, % of energy", text=lambda row: number(100 * row["relative_error"])),
        Column(
            title="error / that without rotation [95 %]",
            text=lambda row: interval(row["ratio"], row["ratio_ci95"], ".3f"),
        ),
    ),
    notes=(
        f"{2**DIRECTION_BITS} directions for each pair of coordinates and exact magnitudes, so that only directions "
        f"lose; deviations from the means of blocks of {BLOCK} tokens. Pairs without a preferred direction lose "
        f"{100 * _ISOTROPIC:.3f} %. Oracles choose for each block and do not pay for it: stored as float16, a rotation "
        f"of dimension D takes 16 D / {BLOCK} bits per value. Intervals are over blocks, which are not independent.",
    ),
    seconds=12.0,
)

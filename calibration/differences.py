"""Fisher matrices without a backward pass: a shape from the weights and the queries, a size from finite differences.

An error ``e`` of a key reaches the model through logits ``q e``, so its cost is shaped like the second moment of the
queries as seen from the key, rotated by how far away they are; one of a value through the output projection ``W`` of
the heads that read it, shaped like ``W W^T``. What each head's errors then do to the predictions differs by orders of
magnitude, and is measured: the head's coded vectors are perturbed a little, and the change of the log-probabilities
compared with what the shape alone would say.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.models.probe import PerturbedCache, PerturbedLayer, coded_for
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.rope import rotate_by
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, Float, Int

SIZE = 0.05
"""Deviation of the perturbation, in deviations of each channel: small enough that its effect is quadratic."""

_DISTANCES = 64
"""Distances of queries that are averaged over."""


@pytree_dataclass
class Sensitivity:
    """Sums over passages, ``[..., 2, K]``: of each head's keys, of its values.

    Attributes:
        change: of the divergence of the predictions, nats.
        energy: of ``e^T M e`` over coded tokens, ``M`` the shape and ``e`` the perturbation.
    """

    change: Array
    energy: Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> "Sensitivity":
        """Nothing measured."""
        return cls(change=jnp.zeros(shape, jnp.float32), energy=jnp.zeros(shape, jnp.float32))

    def scale(self) -> Float[Array, "*shape 2 K"]:
        """What to multiply the shapes by: then ``1/2 e^T F e`` is the divergence that an error causes."""
        return 2.0 * self.change / jnp.maximum(self.energy, jnp.finfo(jnp.float32).tiny)


def key_shapes(
    query: Float[np.ndarray, "K D D"], rope_frequencies: Float[np.ndarray, " half"], window: Geometry, length: int
) -> Float[np.ndarray, "K D D"]:
    """``R_d Q R_d^T`` averaged over the distances ``d`` at which a query may read a code, up to ``length``.

    Evenly on a log axis, as if attention fell with the distance: it need only be right within a factor.

    Args:
        query: second moment of the queries before their rotary embedding.
        rope_frequencies: radians per position.
        window: which tokens each query sees exact.
        length: tokens of a passage.
    """
    angle = jnp.geomspace(window.recent, length, _DISTANCES)[:, None] * rope_frequencies
    turned = jnp.asarray(query)[None]
    for _ in range(2):  # rows, then columns
        turned = jnp.swapaxes(rotate_by(turned, angle[:, None, None]), 2, 3)
    return np.asarray(jnp.mean(turned, axis=0))


def value_shapes(config: Any, params: Any) -> Float[np.ndarray, "L K D D"]:
    """``W W^T`` summed over the query heads that read each value head, ``W`` ``[D, E]`` of the output projection."""
    shapes = []
    for layer in range(config.num_layers):
        kernel = np.asarray(params[f"layers_{layer}"]["attention"]["o_proj"]["kernel"], np.float64)
        heads = kernel.reshape(config.num_kv_heads, -1, config.head_dim, kernel.shape[-1])
        shapes.append(np.einsum("kgde,kgfe->kdf", heads, heads))
    return np.stack(shapes).astype(np.float32)


def log_probabilities(model: Any, params: Any, tokens: Int[Array, " T"]) -> Float[Array, "T V"]:
    """The model's own, undisturbed."""
    cache = PerturbedCache.zeros(model.config, tokens.shape[0], ())
    return jax.nn.log_softmax(model.apply({"params": params}, tokens[None], cache=cache).logits[0])


def measure(
    model: Any,
    params: Any,
    tokens: Int[Array, " T"],
    reference: Float[Array, "T V"],
    key: Array,
    layer: Int[Array, ""],
    deviations: Float[Array, "2 K D"],
    shapes: Float[Array, "2 K D D"],
    *,
    window: Geometry,
    size: float = SIZE,
) -> Sensitivity:
    """Perturbs each head of one layer's keys, then of its values, one at a time.

    The divergence is half the variance of the log-probabilities' change under the model's own prediction: equal to the
    Kullback-Leibler divergence to second order, but a sum of squares, so rounding cannot make it negative or hide it.

    Args:
        model: the decoder; float32.
        params: its parameters.
        tokens: a passage.
        reference: ``log_probabilities`` of the passage.
        key: PRNG key of the perturbation.
        layer: index of the layer; may be traced, so that all layers share one program.
        deviations: of the layer's keys and values.
        shapes: of their Fisher matrices.
        window: which tokens each query sees exact.
        size: of the perturbation, in deviations.
    """
    config, length = model.config, tokens.shape[0]
    coded = jnp.any(coded_for(window, length), axis=0)
    noise = size * jax.random.normal(key, (2, length, config.num_kv_heads, config.head_dim)) * deviations[:, None]
    noise = jnp.where(coded[None, :, None, None], noise, 0.0)
    energy = jnp.einsum("stkd,skde,stke->sk", noise, shapes, noise, precision="highest")
    probabilities = jnp.exp(reference)

    def change(index: Array) -> Array:
        stream, head = index // config.num_kv_heads, index % config.num_kv_heads
        chosen = (jnp.arange(2)[:, None] == stream) & (jnp.arange(config.num_kv_heads) == head)
        disturbed = jnp.where(chosen[:, None, :, None], noise, 0.0)[:, None]
        cache = PerturbedCache(
            layers=tuple(
                PerturbedLayer(
                    key=(jnp.where(layer == each, disturbed[0], 0.0),),
                    value=(jnp.where(layer == each, disturbed[1], 0.0),),
                    windows=(window,),
                    at_zero=False,
                )
                for each in range(config.num_layers)
            ),
            batch_size=1,
        )
        logits = model.apply({"params": params}, tokens[None], cache=cache).logits[0]
        moved = jax.nn.log_softmax(logits) - reference
        mean = jnp.sum(probabilities * moved, axis=-1, keepdims=True)
        return 0.5 * jnp.sum(probabilities * jnp.square(moved - mean))

    changes = jax.lax.map(change, jnp.arange(2 * config.num_kv_heads))
    return Sensitivity(change=changes.reshape(2, -1), energy=energy)

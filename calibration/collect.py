"""One pass over training text: moments of keys, values and queries, and what errors in them cost.

For every passage the model runs once forward; labels are drawn from its own predictions (not from the text: that is
what makes the second moment of gradients a Fisher matrix), and one backward pass for each draw gives the gradient with
respect to every coded key and value, for all exact windows at once. All of it is one jitted update of a fixed-size
state, so memory does not depend on the number of passages.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.calibration.statistics import Moments, SecondMoment
from kakeya_jax.models.probe import PerturbedCache, coded_for
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, Float, Int

SKIPPED = 4
"""First tokens of a passage left out of the moments: attention sinks, which every default recipe keeps exact."""

_LABEL_BLOCK = 128
"""Tokens of the vocabulary that are summed first when a label is drawn."""


@pytree_dataclass
class LayerStatistics:
    """Of one layer; ``K`` heads of dimension ``D``, windows in the order they were asked for.

    Attributes:
        key: keys before their rotary embedding.
        value: values.
        both: ``[1, 2 K D]`` all heads' keys, then all heads' values, as one vector; None if not collected.
        query: second moment of the queries before their rotary embedding, over a head's group of queries.
        key_fisher, value_fisher: for each window, of the gradients of the log-likelihood of sampled labels.
    """

    key: Moments
    value: Moments
    both: Moments | None
    query: SecondMoment
    key_fisher: tuple[SecondMoment, ...]
    value_fisher: tuple[SecondMoment, ...]

    def merge(self, other: "LayerStatistics") -> "LayerStatistics":
        """The statistics of both texts."""
        return LayerStatistics(
            key=self.key.merge(other.key),
            value=self.value.merge(other.value),
            both=None if self.both is None or other.both is None else self.both.merge(other.both),
            query=self.query.merge(other.query),
            key_fisher=tuple(a.merge(b) for a, b in zip(self.key_fisher, other.key_fisher, strict=True)),
            value_fisher=tuple(a.merge(b) for a, b in zip(self.value_fisher, other.value_fisher, strict=True)),
        )


Statistics = tuple[LayerStatistics, ...]
"""One entry for each layer."""


def init(config: Any, windows: int, *, joint: bool) -> Statistics:
    """Nothing seen yet.

    Args:
        config: the model's.
        windows: exact windows whose Fisher matrices are collected.
        joint: also collect the covariance of all of a layer's heads, keys and values together.
    """
    heads, dim = config.num_kv_heads, config.head_dim
    square = functools.partial(SecondMoment.init, heads, dim)
    return tuple(
        LayerStatistics(
            key=Moments.init(heads, dim),
            value=Moments.init(heads, dim),
            both=Moments.init(1, 2 * heads * dim) if joint else None,
            query=square(),
            key_fisher=tuple(square() for _ in range(windows)),
            value_fisher=tuple(square() for _ in range(windows)),
        )
        for _ in range(config.num_layers)
    )


def update(
    model: Any,
    params: Any,
    state: Statistics,
    tokens: Int[Array, " T"],
    key: Array,
    *,
    windows: tuple[Geometry, ...],
    samples: int,
) -> Statistics:
    """Adds one passage.

    Args:
        model: the decoder.
        params: its parameters.
        state: what was seen before.
        tokens: the passage.
        key: PRNG key of the sampled labels.
        windows: which tokens each query sees exact; one set of Fisher matrices for each. None: no backward pass.
        samples: draws of labels, a backward pass each.
    """
    length = tokens.shape[0]

    def predict(taps: PerturbedCache) -> tuple[Array, Any]:
        output, sown = model.apply({"params": params}, tokens[None], cache=taps, mutable=["intermediates"])
        return output.logits[0].astype(jnp.float32), sown["intermediates"]

    logits, pull, sown = jax.vjp(predict, PerturbedCache.zeros(model.config, length, windows), has_aux=True)
    state = tuple(map(_add_vectors, state, activations(sown)))
    if not windows:
        return state

    def add_sample(fishers: Any, sample_key: Array) -> tuple[Any, None]:
        labels = sample_labels(sample_key, logits)
        # The gradient of the log-likelihood: one-hot labels minus probabilities.
        residual = -jax.nn.softmax(logits)
        gradients = pull(residual.at[jnp.arange(length), labels].add(1.0))[0]
        return tuple(_add_gradients(*each, windows) for each in zip(fishers, gradients.layers, strict=True)), None

    fishers = tuple((layer.key_fisher, layer.value_fisher) for layer in state)
    fishers, _ = jax.lax.scan(add_sample, fishers, jax.random.split(key, samples))
    return tuple(
        LayerStatistics(
            key=layer.key,
            value=layer.value,
            both=layer.both,
            query=layer.query,
            key_fisher=key_fisher,
            value_fisher=value_fisher,
        )
        for layer, (key_fisher, value_fisher) in zip(state, fishers, strict=True)
    )


def sample_labels(key: Array, logits: Float[Array, "T V"]) -> Int[Array, " T"]:
    """A token for every position, drawn from ``softmax(logits)`` by inverting its cumulative sum in two stages.

    One random number for each position instead of one for each entry of the vocabulary.
    """
    length, vocabulary = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -vocabulary % _LABEL_BLOCK))).reshape(length, -1, _LABEL_BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = jax.random.uniform(key, (length, 1)) * ends[:, -1:]
    index = jnp.minimum(jnp.sum(ends <= target, axis=-1, keepdims=True), sums.shape[1] - 1)
    block = jnp.take_along_axis(blocks, index[:, :, None], axis=1)[:, 0]
    start = jnp.take_along_axis(ends - sums, index, axis=1)
    within = jnp.sum(start + jnp.cumsum(block, axis=-1) <= target, axis=-1)
    # Rounding may point past the last token of a block: then at the likeliest one of it, never at one of no weight.
    chosen = jnp.minimum(within, _LABEL_BLOCK - 1)
    weight = jnp.take_along_axis(block, chosen[:, None], axis=1)[:, 0]
    return index[:, 0] * _LABEL_BLOCK + jnp.where(weight > 0, chosen, jnp.argmax(block, axis=-1))


def activations(sown: Any) -> list[dict[str, Float[Array, "K T D"]]]:
    """Queries ``[H, T, D]``, keys and values ``[K, T, D]`` of every layer, as ``Decoder`` sowed them for one row."""
    layers = sorted((name for name in sown if name.startswith("layers_")), key=lambda name: int(name[7:]))
    return [
        {name: jnp.swapaxes(stream[0][0], 0, 1) for name, stream in sown[layer]["attention"].items()}
        for layer in layers
    ]


def _add_vectors(held: LayerStatistics, found: dict[str, Array]) -> LayerStatistics:
    key, value = found["key"][:, SKIPPED:], found["value"][:, SKIPPED:]
    heads, _, dim = key.shape
    query = found["query"][:, SKIPPED:].reshape(heads, -1, dim)
    both = None
    if held.both is not None:
        joined = jnp.concatenate([key, value]).transpose(1, 0, 2)
        both = held.both.update(joined.reshape(1, joined.shape[0], -1))
    return LayerStatistics(
        key=held.key.update(key),
        value=held.value.update(value),
        both=both,
        query=held.query.update(query),
        key_fisher=held.key_fisher,
        value_fisher=held.value_fisher,
    )


def _add_gradients(held: Any, gradients: Any, windows: tuple[Geometry, ...]) -> Any:
    """The Fisher matrices of one layer, ``(of keys, of values)``, with one more draw of labels."""
    length = gradients.key[0].shape[1]
    coded = [jnp.sum(jnp.any(coded_for(geometry, length), axis=0)) for geometry in windows]
    return tuple(
        tuple(
            old.update(jnp.swapaxes(each[0], 0, 1), count)
            for old, each, count in zip(fishers, stream, coded, strict=True)
        )
        for fishers, stream in zip(held, (gradients.key, gradients.value), strict=True)
    )

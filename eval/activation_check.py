"""What a recipe does to the keys and values of one passage, layer by layer, and what makes a layer hard to code.

No tables and no gradients: the dense model runs once, each layer's tokens go through the recipe's own streams, and what
comes back is compared with what went in.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import CompressedCache, LayerCache
from kakeya_jax.calibration.collect import activations
from kakeya_jax.models.probe import PerturbedCache
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import read
from kakeya_jax.typing import Array, Float, Int

SKIPPED = 4
"""First tokens of the passage, which are attention sinks, are not looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """One layer on one passage; of several heads the worst.

    Attributes:
        layer: layer index.
        logit_error: root mean square, nats, of what coding changes in attention logits of coded tokens, for the queries
            of the passage.
        value_error: squared error of coded values over their variance about each channel's mean.
        key_outlier, value_outlier: root mean square of the largest channel (of keys, of the largest pair of channels
            that rotates together) over that of the median one.
        query_condition: largest over smallest eigenvalue of the queries' second moment.
        largest: largest magnitude of keys and values.
        non_finite: numbers that are not finite, before coding or after.
    """

    layer: int
    logit_error: float
    value_error: float
    key_outlier: float
    value_outlier: float
    query_condition: float
    largest: float
    non_finite: int


def check_activations(model: Any, params: Any, cache: CompressedCache, tokens: Int[Array, " T"]) -> list[LayerCheck]:
    """Codes the keys and values of a passage and compares.

    Args:
        model: the decoder.
        params: its parameters.
        cache: an empty cache of the recipe, with room for the passage.
        tokens: the passage.

    Returns:
        One entry for each layer; errors are 0 where the recipe codes nothing.
    """

    @jax.jit
    def run(params: Any, tokens: Array) -> list[dict[str, Array]]:
        probe = PerturbedCache.zeros(model.config, tokens.shape[0], ())
        _, sown = model.apply({"params": params}, tokens[None], cache=probe, mutable=["intermediates"])
        return activations(sown["intermediates"])

    found = run(params, jnp.asarray(tokens))
    numbers = []
    for layer, streams in zip(cache.layers, found, strict=True):
        numbers.append(_measure(layer, streams["query"], streams["key"], streams["value"], rope=model.config.rope))
    return [
        LayerCheck(
            layer=index,
            query_condition=_condition(each["query_moment"]),
            non_finite=int(each["non_finite"]),
            **{name: float(each[name]) for name in _PLAIN},
        )
        for index, each in enumerate(jax.device_get(numbers))
    ]


_PLAIN = ("logit_error", "value_error", "key_outlier", "value_outlier", "largest")


@functools.partial(jax.jit, static_argnames="rope")
def _measure(
    layer: LayerCache,
    query: Float[Array, "H T D"],
    key: Float[Array, "K T D"],
    value: Float[Array, "K T D"],
    *,
    rope: Rope,
) -> dict[str, Array]:
    heads, length, dim = key.shape
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    held = layer.append(jnp.swapaxes(key, 0, 1)[None], jnp.swapaxes(value, 0, 1)[None], rope=rope).layer
    keys, values = (read(stream)[0, :, :length] for stream in (held.key, held.value))
    geometry = held.key.geometry
    end = geometry.sinks + geometry.num_pages * geometry.page
    coded = slice(max(geometry.sinks, 0), min(end, length))
    grouped = query.reshape(heads, -1, length, dim)[:, :, SKIPPED:]
    moment = jnp.einsum("kgtd,kgte->kde", grouped, grouped) / (grouped.shape[1] * grouped.shape[2])
    # Errors of keys that are stored after their rotary embedding meet queries that are rotated as well.
    if held.key.rope == "post":
        position = jnp.arange(length)
        keys_in = apply_rope(key, position[None], rope)
        turned = apply_rope(query, position[None], rope).reshape(heads, -1, length, dim)[:, :, SKIPPED:]
        seen = jnp.einsum("kgtd,kgte->kde", turned, turned) / (turned.shape[1] * turned.shape[2])
    else:
        keys_in, seen = key, moment
    error = (keys - keys_in)[:, coded]
    count = max(error.shape[1], 1)
    logit = jnp.einsum("ktd,kde,kte->k", error, seen, error) / (count * dim)
    value_error = jnp.sum((values - value)[:, coded] ** 2, axis=(1, 2))
    spread = jnp.sum((value[:, coded] - jnp.mean(value[:, coded], axis=1, keepdims=True)) ** 2, axis=(1, 2))
    tiny = jnp.finfo(jnp.float32).tiny
    finite = sum(jnp.sum(~jnp.isfinite(x)) for x in (query, key, value, keys, values))
    return {
        "logit_error": jnp.sqrt(jnp.max(logit)),
        "value_error": jnp.max(jnp.where(spread > 0, value_error / jnp.maximum(spread, tiny), 0.0)),
        "key_outlier": _outlier(_pairs(key[:, SKIPPED:])),
        "value_outlier": _outlier(value[:, SKIPPED:] ** 2),
        "query_moment": moment,
        "largest": jnp.maximum(jnp.max(jnp.abs(key)), jnp.max(jnp.abs(value))),
        "non_finite": jnp.asarray(finite),
    }


def _pairs(key: Float[Array, "K T D"]) -> Float[Array, "K T E"]:
    half = key.shape[-1] // 2
    return key[..., :half] ** 2 + key[..., half : 2 * half] ** 2


def _outlier(energy: Float[Array, "K T E"]) -> Float[Array, ""]:
    channel = jnp.sqrt(jnp.mean(energy, axis=1))
    return jnp.max(jnp.max(channel, axis=1) / jnp.maximum(jnp.median(channel, axis=1), jnp.finfo(jnp.float32).tiny))


def _condition(moment: Float[np.ndarray, "K D D"]) -> float:
    if not np.isfinite(moment).all():
        return float("inf")
    values = np.linalg.eigvalsh(np.asarray(moment, np.float64))
    return float(max(head[-1] / head[0] if head[0] > 0 else np.inf for head in values))

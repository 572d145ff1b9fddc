"""A stand-in for the cache that adds a perturbation to what attention reads of past, coded tokens.

The Fisher matrices of calibration are second moments of the gradient with respect to this perturbation at zero: what
an error of a *coded* key or value would cost, while the same token inside the exact window of a nearer query costs
nothing. Finite differences through the same path are the fall-back where there is no backward pass.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.pytree import pytree_dataclass, static_field
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, Bool, Float, Int

CHUNK = 512
"""Queries that attend at once: keys after the last of them are not read, and memory does not grow with the square."""


@pytree_dataclass
class PerturbedLayer:
    """What one layer adds to coded keys, before their rotary embedding, and to coded values.

    Attributes:
        key: for each window ``[B, T, K, D]``, added for those queries that read the token from codes.
        value: the same for values.
        windows: which tokens are coded for which query.
        at_zero: all of them are known to be zero, and only the gradient with respect to them is wanted: they are not
            read, and gradients of any number of windows take one backward pass.
    """

    key: tuple[Array, ...]
    value: tuple[Array, ...]
    windows: tuple[Geometry, ...] = static_field()
    at_zero: bool = static_field()

    def attend(
        self,
        query: Float[Array, "B T H D"],
        key: Float[Array, "B T K D"],
        value: Float[Array, "B T K D"],
        *,
        positions: Int[Array, "B T"],
        rope: Rope,
        scale: float,
    ) -> Float[Array, "B T H D"]:
        """Dense causal attention of a whole text; queries are rotated, keys are not."""
        batch, length, num_heads, dim = query.shape
        heads = key.shape[2]
        grouped = query.astype(jnp.float32).reshape(batch, length, heads, -1, dim).transpose(0, 2, 3, 1, 4)

        def rotated(x: Array) -> Array:
            return _heads_first(apply_rope(x, positions[..., None], rope))

        attention = _tapped_attention if self.at_zero else _perturbed_attention
        out: Array = attention(
            grouped,
            rotated(key),
            _heads_first(value),
            tuple(map(rotated, self.key)),
            tuple(map(_heads_first, self.value)),
            self.windows,
            scale,
        )
        return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, dim).astype(query.dtype)


@pytree_dataclass
class PerturbedCache:
    """Perturbations of all layers, where ``Decoder`` takes a cache; holds no tokens."""

    layers: tuple[PerturbedLayer, ...]
    batch_size: int = static_field()

    @classmethod
    def zeros(cls, config: Any, length: int, windows: tuple[Geometry, ...], *, batch_size: int = 1) -> "PerturbedCache":
        """No perturbation, for texts of ``length`` tokens: what gradients are taken with respect to.

        Args:
            config: the model's (number of layers, key/value heads, head dimension).
            length: tokens of the text.
            windows: which tokens each query sees exact; none for plain dense attention.
            batch_size: rows.
        """
        zero = (jnp.zeros((batch_size, length, config.num_kv_heads, config.head_dim), jnp.float32),) * len(windows)
        layer = PerturbedLayer(key=zero, value=zero, windows=windows, at_zero=True)
        return cls(layers=(layer,) * config.num_layers, batch_size=batch_size)

    @property
    def length(self) -> Int[Array, " B"]:
        """Tokens read before: none."""
        return jnp.zeros(self.batch_size, jnp.int32)

    def replace_layers(self, layers: tuple[Any, ...]) -> "PerturbedCache":
        """The same perturbations: attention changes nothing here."""
        return dataclasses.replace(self, layers=layers)


def coded_for(geometry: Geometry, length: int) -> Bool[Array, "T T"]:
    """Whether the query at position ``t`` reads token ``s`` from codes, as ``Stream`` serves it."""
    position = jnp.arange(length, dtype=jnp.int32)
    closed = geometry.sinks + geometry.closed_pages(position + 1) * geometry.page
    return (position >= geometry.sinks) & (position < closed[:, None])


def dense_causal(
    query: Float[Array, "B K G T D"], key: Float[Array, "B K T D"], value: Float[Array, "B K T D"], scale: float
) -> Float[Array, "B K G T D"]:
    """Causal attention of a whole text, a chunk of queries at a time; float32, rotary embeddings already applied."""
    return _perturbed_attention(query, key, value, (), (), (), scale)


def _perturbed_attention(
    query: Float[Array, "B K G T D"],
    key: Float[Array, "B K T D"],
    value: Float[Array, "B K T D"],
    key_errors: tuple[Float[Array, "B K T D"], ...],
    value_errors: tuple[Float[Array, "B K T D"], ...],
    windows: tuple[Geometry, ...],
    scale: float,
) -> Float[Array, "B K G T D"]:
    """Attention that reads ``key + error`` and ``value + error`` where a token is coded for its query."""
    length = query.shape[3]
    masks = [coded_for(geometry, length) for geometry in windows]
    outputs = []
    for start, stop in _chunks(length):
        part = query[:, :, :, start:stop]
        logits = jnp.einsum("bkgtd,bksd->bkgts", part, key[:, :, :stop])
        for mask, error in zip(masks, key_errors, strict=True):
            change = jnp.einsum("bkgtd,bksd->bkgts", part, error[:, :, :stop])
            logits += jnp.where(mask[start:stop, :stop], change, 0.0)
        weights = jax.nn.softmax(jnp.where(_causal(start, stop), logits * scale, -jnp.inf), axis=-1)
        out = jnp.einsum("bkgts,bksd->bkgtd", weights, value[:, :, :stop])
        for mask, error in zip(masks, value_errors, strict=True):
            coded = jnp.where(mask[start:stop, :stop], weights, 0.0)
            out += jnp.einsum("bkgts,bksd->bkgtd", coded, error[:, :, :stop])
        outputs.append(out)
    return jnp.concatenate(outputs, axis=3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _tapped_attention(
    query: Array,
    key: Array,
    value: Array,
    key_errors: tuple[Array, ...],
    value_errors: tuple[Array, ...],
    windows: tuple[Geometry, ...],
    scale: float,
) -> Array:
    """``_perturbed_attention`` at errors of zero, which are not read; its gradients are the same."""
    return _forward(query, key, value, key_errors, value_errors, windows, scale)[0]


def _forward(
    query: Array,
    key: Array,
    value: Array,
    key_errors: tuple[Array, ...],
    value_errors: tuple[Array, ...],
    windows: tuple[Geometry, ...],
    scale: float,
) -> tuple[Array, tuple[Array, ...]]:
    """The output, and what the backward pass needs: nothing of the size of the weights, which are made again."""
    del key_errors, value_errors, windows
    outputs, normalizers = [], []
    for start, stop in _chunks(query.shape[3]):
        logits = _logits(query, key, start, stop, scale)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        outputs.append(_group(jnp.einsum("bkns,bksd->bknd", _flat(weights), value[:, :, :stop]), query) / total)
        normalizers.append(largest + jnp.log(total))
    out = jnp.concatenate(outputs, axis=3)
    return out, (query, key, value, out, jnp.concatenate(normalizers, axis=3))


def _backward(
    windows: tuple[Geometry, ...], scale: float, held: tuple[Array, ...], out_gradient: Array
) -> tuple[Any, ...]:
    """Gradients of everything; those of the errors are the parts of the keys' and values' that coded tokens have.

    Products over queries are written ``[D, S]``: on a CPU four times as fast as their transposes.
    """
    query, key, value, out, normalizer = held
    length = query.shape[3]
    along = jnp.sum(out * out_gradient, axis=-1, keepdims=True)
    total = [jnp.zeros_like(jnp.swapaxes(each, 2, 3)) for each in (key, value)]
    taps = [[jnp.zeros_like(each) for each in total] for _ in windows]
    query_gradients = []
    for start, stop in _chunks(length):
        weights = jnp.exp(_logits(query, key, start, stop, scale) - normalizer[:, :, :, start:stop])
        gradient = out_gradient[:, :, :, start:stop]
        into_weights = _group(jnp.einsum("bknd,bksd->bkns", _flat(gradient), value[:, :, :stop]), query)
        into_logits = weights * (into_weights - along[:, :, :, start:stop]) * scale
        query_gradients.append(_group(jnp.einsum("bkns,bksd->bknd", _flat(into_logits), key[:, :, :stop]), query))
        sides = ((query[:, :, :, start:stop], into_logits), (gradient, weights))
        chunk = [_over_queries(*side) for side in sides]
        total = [each.at[..., :stop].add(part) for each, part in zip(total, chunk, strict=True)]
        for geometry, tap in zip(windows, taps, strict=True):
            # Tokens coded for all of the chunk's queries have the same gradient as before; a strip of as many tokens as
            # the chunk has queries turns from exact to coded within it; later ones are exact for all.
            first, last = _coded_end(geometry, start + 1), _coded_end(geometry, stop)
            mask = coded_for(geometry, length)[start:stop, first:last]
            for stream, (left, right) in enumerate(sides):
                tap[stream] = (
                    tap[stream].at[..., geometry.sinks : first].add(chunk[stream][..., geometry.sinks : first])
                )
                if last > first:
                    strip = _over_queries(left, jnp.where(mask, right[..., first:last], 0.0))
                    tap[stream] = tap[stream].at[..., first:last].add(strip)
    key_gradient, value_gradient = (jnp.swapaxes(each, 2, 3) for each in total)
    key_taps, value_taps = (tuple(jnp.swapaxes(tap[stream], 2, 3) for tap in taps) for stream in range(2))
    return jnp.concatenate(query_gradients, axis=3), key_gradient, value_gradient, key_taps, value_taps


_tapped_attention.defvjp(_forward, _backward)


def _logits(query: Array, key: Array, start: int, stop: int, scale: float) -> Float[Array, "B K G t s"]:
    part = _flat(query[:, :, :, start:stop])
    logits = _group(jnp.einsum("bknd,bksd->bkns", part, key[:, :, :stop]), query)
    return jnp.where(_causal(start, stop), logits * scale, -jnp.inf)


def _over_queries(left: Float[Array, "B K G t D"], right: Float[Array, "B K G t s"]) -> Float[Array, "B K D s"]:
    return jnp.einsum("bknd,bkns->bkds", _flat(left), _flat(right))


def _flat(x: Float[Array, "B K G t E"]) -> Float[Array, "B K n E"]:
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _group(x: Float[Array, "B K n E"], query: Array) -> Float[Array, "B K G t E"]:
    return x.reshape(*x.shape[:2], query.shape[2], -1, x.shape[-1])


def _heads_first(x: Float[Array, "B T K D"]) -> Float[Array, "B K T D"]:
    return jnp.swapaxes(x.astype(jnp.float32), 1, 2)


def _causal(start: int, stop: int) -> Bool[Array, "t s"]:
    return jnp.arange(start, stop)[:, None] >= jnp.arange(stop)


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def _coded_end(geometry: Geometry, length: int) -> int:
    """Where the tokens end that are coded once ``length`` are held."""
    with jax.ensure_compile_time_eval():
        return geometry.sinks + int(geometry.closed_pages(jnp.int32(length))) * geometry.page

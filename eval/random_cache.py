"""Caches full of random codes: what a kernel reads does not depend on what the codes say."""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CompressedCache
from kakeya_jax.codecs.fp8 import Fp8, without_nan
from kakeya_jax.models.dense_cache import DenseCache, DenseLayer
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array

AnyCache = TypeVar("AnyCache", CompressedCache, DenseCache)


def random_cache(cache: AnyCache, key: Array, *, length: int) -> AnyCache:
    """The cache with ``length`` random tokens in every row. Its arrays are reused: outside ``jit`` the old are gone."""
    keys = jax.random.split(key, len(cache.layers))
    layers: tuple[Any, ...] = cache.layers
    return cache.replace_layers(
        tuple(_random_layer(layer, each, length=length) for layer, each in zip(layers, keys, strict=True))
    )


@functools.partial(jax.jit, static_argnames="length", donate_argnums=0, keep_unused=True)
def _random_layer(layer: Any, key: Array, *, length: int) -> Any:
    """Layers that are alike are compiled once; each takes the place of the one it is given, used or not."""
    if isinstance(layer, DenseLayer):
        return random_dense_layer(layer, key, length=length)
    streams = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    keys = jax.random.split(key, len(streams))
    filled = {
        name: random_stream(each, key, length=length) for (name, each), key in zip(streams.items(), keys, strict=True)
    }
    return dataclasses.replace(layer, **filled)


def random_dense_layer(layer: DenseLayer, key: Array, *, length: int) -> DenseLayer:
    """Normal keys and values."""
    keys, values = (
        jax.random.normal(each, leaf.shape, leaf.dtype)
        for each, leaf in zip(jax.random.split(key), (layer.key, layer.value), strict=True)
    )
    return DenseLayer(key=keys, value=values, length=jnp.full_like(layer.length, length))


def random_stream(stream: Stream, key: Array, *, length: int) -> Stream:
    """Random bits in integer leaves (of ``fp8`` those of numbers), numbers between 0.05 and 0.3 in others, normal exact
    tokens."""
    keys = iter(jax.random.split(key, 64))

    def draw(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.random.bits(next(keys), leaf.shape, f"uint{8 * leaf.dtype.itemsize}").astype(leaf.dtype)
        return jax.random.uniform(next(keys), leaf.shape, jnp.float32, 0.05, 0.3).astype(leaf.dtype)

    blocks = jax.tree.map(draw, stream.blocks)
    if isinstance(stream.codec, Fp8):
        blocks = dataclasses.replace(blocks, codes=without_nan(blocks.codes))
    return dataclasses.replace(
        stream,
        blocks=blocks,
        sinks=jax.random.normal(next(keys), stream.sinks.shape, stream.sinks.dtype),
        tail=jax.random.normal(next(keys), stream.tail.shape, stream.tail.dtype),
        length=jnp.full_like(stream.length, length),
    )

"""Pages that a decode step closes, coded before its layers run: one condition for a whole cache, not one a stream.

A page that closes when one more token comes holds tokens that came before it (the newest is always exact), so nothing
that a layer computes is needed. On a GPU each condition is a wait for the device, and a step of a large model has many
streams. Streams whose codecs differ in tables only are coded by one compiled program, one after the other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CompressedCache, LayerCache, LayerUpdate
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream, appended_length, encode_pages, oldest_page, write_codes
from kakeya_jax.typing import Array, Bool, Float


@pytree_dataclass
class ReadyLayer:
    """A layer that has coded already what the next token closes; takes that token as ``LayerCache`` does."""

    layer: LayerCache

    def append(
        self,
        key: Float[Array, "B 1 K D"],
        value: Float[Array, "B 1 K D"],
        *,
        rope: Rope,
        valid: Bool[Array, "B 1"] | None = None,
    ) -> LayerUpdate:
        """See ``LayerCache.append``."""
        return self.layer.append(key, value, rope=rope, valid=valid, pages_closed=True)


def ready_layers(cache: CompressedCache, valid: Bool[Array, "B 1"] | None = None) -> tuple[ReadyLayer, ...]:
    """The layers, with the pages coded that one more token in every row (in every valid one) closes.

    Not differentiable in reverse mode. Nothing is copied: where nothing closes, which is the case for all steps of a
    page but one, codes are not touched.
    """
    names = [tuple(name for name, _ in layer.streams()) for layer in cache.layers]
    closed = iter(_close([stream for layer in cache.layers for _, stream in layer.streams()], valid))
    return tuple(
        ReadyLayer(layer=dataclasses.replace(layer, **{name: next(closed) for name in each}))
        for layer, each in zip(cache.layers, names, strict=True)
    )


def _close(streams: list[Stream], valid: Array | None) -> list[Stream]:
    coded = [stream for stream in streams if stream.geometry.num_pages]
    if not coded:
        return streams
    of_geometry = {stream.geometry: stream for stream in coded}
    pending = [
        each.geometry.closed_pages(appended_length(each, 1, valid)) > each.geometry.closed_pages(each.length)
        for each in of_geometry.values()
    ]

    # A loop that runs once or not at all: its state stays where it is, where a condition may copy what it passes on.
    def close(state: tuple[Array, list[Any]]) -> tuple[Array, list[Any]]:
        written = [
            write_codes(stream, blocks, codes, appended_length(stream, 1, valid))
            for stream, blocks, codes in zip(coded, state[1], _encode(coded), strict=True)
        ]
        return jnp.zeros((), bool), written

    state = (jnp.any(jnp.stack(pending)), [stream.blocks for stream in coded])
    _, blocks = jax.lax.while_loop(lambda state: state[0], close, state)
    closed = iter(blocks)
    return [
        dataclasses.replace(stream, blocks=next(closed)) if stream.geometry.num_pages else stream for stream in streams
    ]


def _encode(streams: Sequence[Stream]) -> list[Any]:
    """The codes of the oldest exact page of every stream."""
    parts = [(stream.codec, oldest_page(stream)) for stream in streams]
    kinds: dict[Any, list[int]] = {}
    for index, part in enumerate(parts):
        leaves, structure = jax.tree.flatten(part)
        kinds.setdefault((structure, *((leaf.shape, leaf.dtype) for leaf in leaves)), []).append(index)
    found: dict[int, Any] = {}
    for same in kinds.values():
        if len(same) == 1:
            found[same[0]] = encode_pages(*parts[same[0]])
            continue
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(parts[index] for index in same))
        codes = jax.lax.map(lambda part: encode_pages(*part), stacked)
        for place, index in enumerate(same):
            found[index] = jax.tree.map(lambda leaf, place=place: leaf[place], codes)
    return [found[index] for index in range(len(streams))]

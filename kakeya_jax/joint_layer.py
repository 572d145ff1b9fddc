"""A layer whose keys and values are coded together: one stream of twice the heads, seen as two.

Attention, reports and files ask a layer for its ``key`` and its ``value``; here both are views of one stream that
holds the heads of keys, before their rotary embedding, and then those of values. Decoding either view decodes both;
inside one ``jit`` the compiler does it once.
"""

from typing import Any, cast

import jax.numpy as jnp

from kakeya_jax import numeric
from kakeya_jax.cache import ChunkWindow, LayerCache, LayerUpdate
from kakeya_jax.pytree import pytree_dataclass, static_field
from kakeya_jax.rope import Rope
from kakeya_jax.stream import ExactWindow, Geometry, Stream, append, fits
from kakeya_jax.typing import Array, Bool, Float, Int, RopeClass, StoredName


@pytree_dataclass
class StreamView:
    """Some heads of a stream, with the interface of one.

    Attributes:
        stream: the stream of all heads.
        first: index of the first head, and
        count: number of heads.
        rope: as in ``Stream``.
    """

    stream: Stream
    first: int = static_field()
    count: int = static_field()
    rope: RopeClass | None = static_field()

    @property
    def sinks(self) -> Array:
        """``[B, K, sinks, D]`` exact."""
        return self._heads(self.stream.sinks)

    @property
    def tail(self) -> Array:
        """``[B, K, tail, D]`` exact; a ring."""
        return self._heads(self.stream.tail)

    @property
    def length(self) -> Int[Array, " B"]:
        """Tokens held."""
        return self.stream.length

    @property
    def geometry(self) -> Geometry:
        """Static sizes."""
        return self.stream.geometry

    @property
    def codec(self) -> Any:
        """The codec of all heads."""
        return self.stream.codec

    @property
    def frame(self) -> None:
        """None: joint codecs have their own coordinates."""
        return

    def tail_positions(self) -> Int[Array, "B tail"]:
        """See ``Stream.tail_positions``."""
        return self.stream.tail_positions()

    def exact_window(self) -> ExactWindow:
        """The tail with the positions of its tokens."""
        return ExactWindow(values=self.tail, positions=self.tail_positions())

    def decode_pages(self, start: Int[Array, ""] | int, count: int) -> Float[Array, "B K tokens D"]:
        """See ``Stream.decode_pages``."""
        return self._heads(self.stream.decode_pages(start, count))

    def _heads(self, array: Array) -> Array:
        return array[:, self.first : self.first + self.count]


@pytree_dataclass
class JointLayerCache:
    """One layer's K and V in one stream, with the interface of ``LayerCache``.

    Attributes:
        both: heads ``0 .. K - 1`` are those of keys, before their rotary embedding; ``K .. 2 K - 1`` those of values.
    """

    both: Stream

    @property
    def key(self) -> StreamView:
        """The keys, before their rotary embedding."""
        return StreamView(stream=self.both, first=0, count=self._num_kv_heads, rope="pre")

    @property
    def value(self) -> StreamView:
        """The values."""
        heads = self._num_kv_heads
        return StreamView(stream=self.both, first=heads, count=heads, rope=None)

    def streams(self) -> tuple[tuple[StoredName, Stream], ...]:
        """What is stored, by name."""
        return (("both", self.both),)

    def append(
        self,
        key: Float[Array, "B T K D"],
        value: Float[Array, "B T K D"],
        *,
        rope: Rope,
        valid: Bool[Array, "B T"] | None = None,
        check_finite: bool = False,
        pages_closed: bool = False,
    ) -> LayerUpdate:
        """See ``LayerCache.append``; ``rope`` is not used."""
        del rope
        if check_finite:
            numeric.check_finite({"key": key, "value": value}, "chunk")
        both = jnp.concatenate([key, value], axis=2)
        row_fits = fits(self.both, key.shape[1], valid)
        stream, window = append(self.both, both, valid, pages_closed=pages_closed)
        chunk = None
        if window is not None:
            heads = self._num_kv_heads
            chunk = ChunkWindow(
                key=ExactWindow(values=window.values[:, :heads], positions=window.positions),
                value=ExactWindow(values=window.values[:, heads:], positions=window.positions),
            )
        return LayerUpdate(layer=cast(LayerCache, JointLayerCache(both=stream)), chunk=chunk, fits=row_fits)

    @property
    def _num_kv_heads(self) -> int:
        return self.both.tail.shape[1] // 2

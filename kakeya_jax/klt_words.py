"""Where the codes of a transform-coded page lie: the order in which a decode kernel reads them.

A page of all heads of a stream is one run of bytes: head after head; of a head, tile after tile of 64 tokens; of a
tile, group after group of 16 channels, each at its own width. So a kernel that attends for one head reads one run, and
a tile of it is a shorter one.

Inside a group's tile, 64 tokens by 16 channels, codes are in *fragment order*: the lanes of a warp, which share a
matrix product's left operand, have theirs one after the other, two units of 16 codes each (``code_words``). Lane
``4 r + t`` has

* of keys channels ``4 t`` to ``4 t + 3`` of the eight tokens ``16 (r / 2) + 4 i + 2 (r % 2) + h``, token after token in
  the order of ``(i, h)``, ``i`` below 4 and ``h`` below 2;
* of values tokens ``16 t`` to ``16 t + 15`` of channel ``r``, and then of channel ``r + 8``.

Groups of another size, and pages that are not whole tiles, have no kernel: they are one tile, packed token after token
(keys) or channel after channel (values).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from kakeya_jax import code_words
from kakeya_jax.klt_layout import Layout
from kakeya_jax.typing import Array, Int, StreamName, UInt8

TILE = 64
"""Tokens of a tile in fragment order,"""

GROUP = 16
"""and channels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageWords:
    """How the codes of one page of a stream become bytes and come back; hashable.

    Attributes:
        layout: widths of all groups.
        stream: keys or values.
        tokens: of a page.
        size: channels of a group.
    """

    layout: Layout
    stream: StreamName
    tokens: int
    size: int

    @property
    def in_fragments(self) -> bool:
        """Whether codes are in fragment order."""
        return self.size == GROUP and self.tokens % TILE == 0

    @property
    def tiles(self) -> int:
        """Tiles of a page."""
        return self.tokens // TILE if self.in_fragments else 1

    @property
    def nbytes(self) -> int:
        """Of a page, all heads."""
        return self.tokens * self.size * sum(map(sum, self.layout.widths)) // 8

    def head_offset(self, head: int) -> int:
        """Where in a page a head begins, bytes."""
        return self.tokens * self.size * sum(map(sum, self.layout.widths[:head])) // 8

    def pack(self, classes: list[Int[Array, "n groups size"]]) -> UInt8[Array, " nbytes"]:
        """The bytes of a page, from the codes of every used width, widest first, as ``Layout.stored`` orders groups."""
        parts = [
            code_words.pack(self._ordered(codes), width).reshape(-1, self._chunk)
            for codes, width in zip(classes, self.layout.used_widths, strict=True)
        ]
        if not parts:
            return jnp.zeros(0, jnp.uint8)
        return jnp.concatenate(parts)[self._order].reshape(-1)

    def unpack(self, words: UInt8[Array, " nbytes"]) -> list[Int[Array, "n groups size"]]:
        """What ``pack`` was given."""
        classes, first = [], 0
        chunks = words.reshape(-1, self._chunk)[np.argsort(self._order)] if self.layout.used_widths else words
        for width, begin, end in self.layout.ranges:
            groups = end - begin
            last = first + groups * self.tiles * width
            packed = chunks[first:last].reshape(groups, self.tiles, -1)
            if self.in_fragments:
                packed = packed.reshape(groups, self.tiles, 64, -1)
            count = GROUP if self.in_fragments else self.tokens * self.size
            classes.append(self._natural(code_words.unpack(packed, width, count)))
            first = last
        return classes

    @property
    def _chunk(self) -> int:
        """Bytes of one bit of a group's tile: what all widths are multiples of."""
        return self.tokens // self.tiles * self.size // 8

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """Which chunk of the classes, one after the other, each chunk of a page is."""
        layout, tiles = self.layout, self.tiles
        found = np.zeros((layout.num_heads * layout.groups_per_head, tiles), object)
        first = 0
        for width, begin, end in layout.ranges:
            for group in layout.stored[begin:end]:
                for tile in range(tiles):
                    found[group, tile] = range(first, first + width)
                    first += width
        heads = found.reshape(layout.num_heads, layout.groups_per_head, tiles).transpose(0, 2, 1).reshape(-1)
        return np.array([chunk for group in heads if group for chunk in group], np.int32)

    def _ordered(self, codes: Array) -> Array:
        """As packed: ``[groups, tiles, 64, 16]`` in fragments, else ``[groups, tiles, n size]``."""
        groups = codes.shape[1]
        if not self.in_fragments:
            order = (1, 0, 2) if self.stream == "key" else (1, 2, 0)
            return codes.transpose(order).reshape(groups, 1, -1)
        if self.stream == "key":
            split = codes.reshape(self.tiles, 4, 4, 2, 2, groups, 4, 4)  # tile, r / 2, i, r % 2, h, group, t, channel
            split = split.transpose(5, 0, 1, 3, 6, 2, 4, 7)
        else:
            split = codes.reshape(self.tiles, 4, 16, groups, 2, 8)  # tile, t, token, group, half, r
            split = split.transpose(3, 0, 5, 1, 4, 2)
        return split.reshape(groups, self.tiles, 64, GROUP)

    def _natural(self, codes: Array) -> Array:
        """The inverse of ``_ordered``."""
        groups = codes.shape[0]
        if not self.in_fragments:
            shape = (self.tokens, self.size) if self.stream == "key" else (self.size, self.tokens)
            return codes.reshape(groups, *shape).transpose((1, 0, 2) if self.stream == "key" else (2, 0, 1))
        if self.stream == "key":
            split = codes.reshape(groups, self.tiles, 4, 2, 4, 4, 2, 4).transpose(1, 2, 5, 3, 6, 0, 4, 7)
        else:
            split = codes.reshape(groups, self.tiles, 8, 4, 2, 16).transpose(1, 3, 5, 0, 4, 2)
        return split.reshape(self.tokens, groups, self.size)

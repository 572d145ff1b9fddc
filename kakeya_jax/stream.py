"""One layer's K or V: exact sinks, coded pages, and an exact tail; appended to with static shapes.

A token's life: it enters the tail exact. When the tail holds ``recent + page`` tokens, the oldest page leaves it
together and is encoded. Whether token ``j`` is coded *for the query at position p* depends on ``p`` alone, never on how
the text was cut into chunks, so appending token by token, in chunks or in bulk gives identical codes and identical
attention.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from kakeya_jax.frame import Frame
from kakeya_jax.page_encoders import encode_by_device
from kakeya_jax.pytree import pytree_dataclass, static_field
from kakeya_jax.typing import Array, Bool, Float, Int, RopeClass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the tokens of a stream are.

    Attributes:
        sinks: first tokens, kept exact.
        recent: latest tokens kept exact at any time, the newest included; at least 1.
        page: tokens that are coded together.
        max_length: tokens the stream can hold.
    """

    sinks: int
    recent: int
    page: int
    max_length: int

    def closed_pages(self, length: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Pages that are coded once ``length`` tokens are held: as the query at position ``length - 1`` sees it."""
        return jnp.maximum(0, (length - self.sinks - self.recent) // self.page)

    @property
    def num_pages(self) -> int:
        """Pages a full stream holds."""
        return max(0, (self.max_length - self.sinks - self.recent) // self.page)

    @property
    def tail_capacity(self) -> int:
        """Tokens the tail can hold: the recent window and all but one token of a page."""
        return max(1, min(self.recent + self.page - 1, self.max_length - self.sinks))

    @property
    def sink_capacity(self) -> int:
        """Sink tokens there is room for."""
        return min(self.sinks, self.max_length)


@pytree_dataclass
class ExactWindow:
    """Exact tokens that a chunk's queries may see, sinks excepted.

    Attributes:
        values: ``[B, K, E, D]``.
        positions: ``[B, E]`` absolute positions; -1 where there is no token.
    """

    values: Array
    positions: Array


@pytree_dataclass
class Stream:
    """The stored form of one stream.

    Attributes:
        sinks: ``[B, K, sinks, D]`` exact.
        blocks: the code of every block, leaves ``[B, K, blocks, ...]``; unused blocks are zero.
        tail: ``[B, K, tail, D]`` exact; a ring: the token at position ``p`` is in slot ``(p - sinks) % tail``.
        length: ``[B]`` tokens held.
        codec: encodes and decodes one block; its tables are leaves.
        frame: the coordinates in which it does so; None for the stream's own.
        geometry: static sizes.
        rope: ``"pre"`` or ``"post"`` for keys (stored before or after the rotary embedding), ``None`` for values.
    """

    sinks: Array
    blocks: Any
    tail: Array
    length: Array
    codec: Any
    frame: Frame | None
    geometry: Geometry = static_field()
    rope: RopeClass | None = static_field()

    @classmethod
    def init(
        cls,
        codec: Any,
        geometry: Geometry,
        *,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: jnp.dtype,
        rope: RopeClass | None,
        frame: Frame | None = None,
    ) -> "Stream":
        """An empty stream with room for ``geometry.max_length`` tokens in each row."""
        block_size = codec.config.block_size
        if geometry.page % block_size:
            raise ValueError(f"block_size={block_size} must divide the page of {geometry.page} tokens")
        num_blocks = geometry.num_pages * (geometry.page // block_size)
        lead = (batch_size, num_kv_heads)
        code = _code_shapes(codec, (*lead, num_blocks, block_size, head_dim))
        return cls(
            sinks=jnp.zeros((*lead, geometry.sink_capacity, head_dim), dtype),
            blocks=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), code),
            tail=jnp.zeros((*lead, geometry.tail_capacity, head_dim), dtype),
            length=jnp.zeros(batch_size, jnp.int32),
            codec=codec,
            frame=frame,
            geometry=geometry,
            rope=rope,
        )

    @property
    def block_size(self) -> int:
        """Tokens in one coded block."""
        return self.codec.config.block_size

    @property
    def blocks_per_page(self) -> int:
        """Coded blocks that make one page."""
        return self.geometry.page // self.block_size

    def tail_positions(self) -> Int[Array, "B tail"]:
        """Absolute position of every tail slot's token; -1 in slots that hold none that is still exact."""
        geometry, capacity = self.geometry, self.tail.shape[2]
        newest = (self.length - geometry.sinks - 1)[:, None]
        slot = jnp.arange(capacity, dtype=jnp.int32)
        index = newest - (newest - slot) % capacity
        first_exact = (geometry.closed_pages(self.length) * geometry.page)[:, None]
        return jnp.where((newest >= 0) & (index >= first_exact), index + geometry.sinks, -1)

    def exact_window(self) -> ExactWindow:
        """The tail with the positions of its tokens."""
        return ExactWindow(values=self.tail, positions=self.tail_positions())

    def decode_pages(self, start: Int[Array, ""] | int, count: int) -> Float[Array, "B K tokens D"]:
        """``count`` coded pages from page ``start`` on (clamped so that all exist), decoded: float32."""
        blocks = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(
                leaf, start * self.blocks_per_page, count * self.blocks_per_page, axis=2
            ),
            self.blocks,
        )
        decoded = decode_blocks(self.codec, blocks, self.tail.shape[1])
        tokens = decoded.reshape(*decoded.shape[:2], -1, decoded.shape[-1])
        if self.frame is None:
            return tokens
        page = self.geometry.page
        last = self.geometry.num_pages - count
        index = jnp.clip(start, 0, last) * page + jnp.arange(count * page, dtype=jnp.int32)
        return self.frame.leave(tokens, (index + self.geometry.sinks)[None])


def append(
    stream: Stream,
    new: Float[Array, "B T K D"],
    valid: Bool[Array, "B T"] | None = None,
    *,
    pages_closed: bool = False,
) -> tuple[Stream, ExactWindow | None]:
    """Appends a chunk to every row, encoding the pages that close.

    Args:
        stream: what is held so far.
        new: the chunk, in the stream's own coordinates (keys already rotated if ``rope == "post"``).
        valid: which of the chunk's tokens are real; ``None`` means all. Padding is dropped, wherever it stands.
        pages_closed: the pages that this chunk of one token closes are coded already (``page_closing``).

    Returns:
        The stream, and the exact window that the chunk's queries see: the tail as it was before, then the chunk. For a
        chunk of one token it is ``None``: the new stream's own tail holds all that the query may see.

    Raises:
        ValueError: outside ``jit``, if a row would hold more than ``max_length`` tokens. Inside ``jit`` such a row is
            left as it was; ``fits`` tells which.
    """
    geometry = stream.geometry
    chunk_length = new.shape[1]
    if pages_closed and chunk_length != 1:
        raise ValueError(f"pages are closed ahead of one token, not of a chunk of {chunk_length}")
    _check_capacity(stream, chunk_length, valid)
    new_length = appended_length(stream, chunk_length, valid)
    count = new_length - stream.length
    new = jnp.swapaxes(new.astype(stream.tail.dtype), 1, 2)
    if valid is not None:
        order = jnp.argsort(~valid, axis=1, stable=True)
        new = jnp.take_along_axis(new, order[:, None, :, None], axis=2)
    updated = dataclasses.replace(
        stream,
        sinks=_write_sinks(stream, new, count),
        blocks=stream.blocks if pages_closed else _close_pages(stream, new, new_length),
        tail=_write_tail(stream, new, count),
        length=new_length,
    )
    if chunk_length == 1:
        return updated, None
    old = stream.exact_window()
    offset = jnp.arange(chunk_length, dtype=jnp.int32)
    position = stream.length[:, None] + offset
    exact = (offset < count[:, None]) & (position >= geometry.sinks)
    window = ExactWindow(
        values=jnp.concatenate([old.values, new], axis=2),
        positions=jnp.concatenate([old.positions, jnp.where(exact, position, -1)], axis=1),
    )
    return updated, window


def _write_sinks(stream: Stream, new: Float[Array, "B K T D"], count: Int[Array, " B"]) -> Array:
    """The sinks with those of a chunk's first ``count`` tokens that are sinks."""
    capacity = stream.sinks.shape[2]
    offset = jnp.arange(min(new.shape[2], capacity), dtype=jnp.int32)
    position = stream.length[:, None] + offset
    held = (offset < count[:, None]) & (position < stream.geometry.sinks)
    return _write(stream.sinks, jnp.where(held, position, capacity + offset), new[:, :, : len(offset)])


def _write_tail(stream: Stream, new: Float[Array, "B K T D"], count: Int[Array, " B"]) -> Array:
    """The tail with a chunk's first ``count`` tokens appended: of more than it holds, the last."""
    capacity, length = stream.tail.shape[2], new.shape[2]
    offset = jnp.arange(min(length, capacity), dtype=jnp.int32)
    if length > capacity:
        chosen = jnp.maximum(count - capacity, 0)[:, None] + offset
        new = _read(new, chosen)
    else:
        chosen = offset
    index = stream.length[:, None] + chosen - stream.geometry.sinks
    held = (chosen < count[:, None]) & (index >= 0)
    return _write(stream.tail, jnp.where(held, index % capacity, capacity + offset), new)


def fits(stream: Stream, chunk_length: int, valid: Bool[Array, "B T"] | None = None) -> Bool[Array, " B"]:
    """Which rows have room for a chunk."""
    return stream.length + _count(stream, chunk_length, valid) <= stream.geometry.max_length


def appended_length(stream: Stream, chunk_length: int, valid: Bool[Array, "B T"] | None = None) -> Int[Array, " B"]:
    """Tokens of each row once a chunk is appended; a row that has no room for its part of it takes nothing."""
    return stream.length + jnp.where(fits(stream, chunk_length, valid), _count(stream, chunk_length, valid), 0)


def read(stream: Stream) -> Float[Array, "B K max_length D"]:
    """Every token as attention sees it now: float32 in the stream's own coordinates, zeros after ``length``.

    This is a dense copy, for tests, figures and conversions.
    """
    geometry = stream.geometry
    batch, heads, _, dim = stream.tail.shape
    out = jnp.zeros((batch, heads, geometry.max_length, dim), jnp.float32)
    out = out.at[:, :, : stream.sinks.shape[2]].set(stream.sinks.astype(jnp.float32))
    if geometry.num_pages:
        coded = stream.decode_pages(0, geometry.num_pages)
        out = out.at[:, :, geometry.sinks : geometry.sinks + coded.shape[2]].set(coded)
    positions = stream.tail_positions()
    slots = jnp.where(positions >= 0, positions, geometry.max_length + jnp.arange(positions.shape[1]))
    out = _write(out, slots, stream.tail.astype(jnp.float32))
    held = jnp.arange(geometry.max_length) < stream.length[:, None]
    return jnp.where(held[:, None, :, None], out, 0.0)


def encode_blocks(codec, blocks: Float[Array, "B K blocks n D"]):
    """The codes of many blocks; leaves ``[B, K, blocks, ...]``, or ``[B, 1, blocks, ...]`` if heads share a block."""
    return encode_by_device(_encode_each, codec, blocks)


def _encode_each(codec, blocks: Float[Array, "B K blocks n D"]):
    blocks = _as_coded(codec, blocks.astype(jnp.float32))
    return jax.vmap(jax.vmap(jax.vmap(lambda block: codec.encode(block))))(blocks)


def _as_coded(codec, blocks: Float[Array, "B K blocks n D"]) -> Array:
    """Blocks after three batch axes: ``[n, D]`` for each head.

    Mixed heads make one block of ``n K`` vectors, token after token and head after head within a token; joint heads
    one of ``[K, n, D]``.
    """
    if codec.config.joint_heads:
        return blocks.transpose(0, 2, 1, 3, 4)[:, None]
    if codec.config.mix_heads:
        batch, heads, count, n, dim = blocks.shape
        return blocks.transpose(0, 2, 3, 1, 4).reshape(batch, 1, count, n * heads, dim)
    return blocks


def decode_blocks(codec, codes, num_kv_heads: int) -> Float[Array, "B K blocks n D"]:
    """The blocks of many codes, float32."""
    blocks = jax.vmap(jax.vmap(jax.vmap(codec.decode)))(codes)
    if codec.config.joint_heads:
        return blocks[:, 0].transpose(0, 2, 1, 3, 4)
    if codec.config.mix_heads:
        batch, _, count, rows, dim = blocks.shape
        blocks = blocks.reshape(batch, count, rows // num_kv_heads, num_kv_heads, dim).transpose(0, 3, 1, 2, 4)
    return blocks


def _code_shapes(codec, blocks: tuple[int, ...]) -> Any:
    """Shapes of the codes of blocks of shape ``blocks``; layers that differ in tables only are traced once."""
    coded = jax.eval_shape(functools.partial(_as_coded, codec), jax.ShapeDtypeStruct(blocks, jnp.float32)).shape
    batch, block = coded[:3], coded[3:]
    leaves, structure = jax.tree.flatten(codec)
    code = _traced_code_shapes(structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), block)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(batch + leaf.shape, leaf.dtype), code)


@functools.lru_cache(maxsize=256)
def _traced_code_shapes(structure: Any, leaves: tuple[tuple[Any, Any], ...], block: tuple[int, ...]) -> Any:
    codec = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves])
    return jax.eval_shape(lambda codec, x: codec.encode(x), codec, jax.ShapeDtypeStruct(block, jnp.float32))


def oldest_page(stream: Stream) -> Float[Array, "B K page D"]:
    """Each row's oldest page that is still exact, as it is coded: what one more token closes, if it closes one."""
    geometry = stream.geometry
    first = geometry.closed_pages(stream.length)
    index = first[:, None] * geometry.page + jnp.arange(geometry.page, dtype=jnp.int32)
    return _enter(stream, _read(stream.tail, index % stream.tail.shape[2]), index)


def encode_pages(codec: Any, pages: Float[Array, "B K tokens D"]) -> Any:
    """The codes of whole pages: leaves ``[B, K, blocks, ...]``."""
    batch, heads, _, dim = pages.shape
    return encode_blocks(codec, pages.reshape(batch, heads, -1, codec.config.block_size, dim))


def write_codes(stream: Stream, blocks: Any, codes: Any, new_length: Int[Array, " B"]) -> Any:
    """``blocks`` with the pages in their slots that close as a row comes to hold ``new_length`` tokens.

    Args:
        stream: as it is before.
        blocks: its codes.
        codes: of the first pages from the oldest exact one on; those that do not close are dropped.
        new_length: tokens of each row then.
    """
    geometry, ratio = stream.geometry, stream.blocks_per_page
    first, last = geometry.closed_pages(stream.length), geometry.closed_pages(new_length)
    block = jnp.arange(jax.tree.leaves(codes)[0].shape[2], dtype=jnp.int32)
    slot = first[:, None] * ratio + block
    slot = jnp.where(slot < last[:, None] * ratio, slot, geometry.num_pages * ratio + block)
    return jax.tree.map(lambda held, code: _write(held, slot, code), blocks, codes)


def _close_pages(stream: Stream, new: Array, new_length: Array) -> Any:
    """Encodes the pages that end up outside the exact window and writes them into their slots."""
    geometry = stream.geometry
    chunk_length = new.shape[2]
    most = min(-(-chunk_length // geometry.page), geometry.num_pages)
    if most == 0:
        return stream.blocks
    first, last = geometry.closed_pages(stream.length), geometry.closed_pages(new_length)

    def encode() -> Any:
        index = first[:, None] * geometry.page + jnp.arange(most * geometry.page, dtype=jnp.int32)
        position = index + geometry.sinks
        from_tail = _read(stream.tail, index % stream.tail.shape[2])
        from_new = _read(new, jnp.clip(position - stream.length[:, None], 0, chunk_length - 1))
        held = (position < stream.length[:, None])[:, None, :, None]
        return encode_pages(stream.codec, _enter(stream, jnp.where(held, from_tail, from_new), index))

    if chunk_length < geometry.page:
        # Most short chunks close no page: then nothing is encoded, and the write below drops every row.
        shapes = jax.eval_shape(encode)
        codes = jax.lax.cond(
            jnp.any(last > first),
            encode,
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
        )
    else:
        codes = encode()
    return write_codes(stream, stream.blocks, codes, new_length)


def _enter(stream: Stream, pages: Float[Array, "B K tokens D"], index: Int[Array, "B tokens"]) -> Array:
    """Tokens in the codec's coordinates: float32, or as they are; ``index`` counts them without the sinks."""
    if stream.frame is None:
        return pages
    return stream.frame.enter(pages.astype(jnp.float32), index + stream.geometry.sinks)


def _write(held: Array, slots: Int[Array, "B new"], new: Array) -> Array:
    """``held[b, :, slots[b, i]] = new[b, :, i]``; slots beyond the end (all different) are dropped."""

    def row(held: Array, slots: Array, new: Array) -> Array:
        return held.at[:, slots].set(new, mode="drop", unique_indices=True)

    return jax.vmap(row)(held, slots, new)


def _read(held: Array, slots: Int[Array, "B new"]) -> Array:
    return jnp.take_along_axis(held, slots[:, None, :, None], axis=2)


def _count(stream: Stream, chunk_length: int, valid: Array | None) -> Array:
    if valid is None:
        return jnp.full_like(stream.length, chunk_length)
    return jnp.sum(valid, axis=1, dtype=jnp.int32)


def _check_capacity(stream: Stream, chunk_length: int, valid: Array | None) -> None:
    limit = stream.geometry.max_length
    if valid is None and chunk_length > limit:
        raise ValueError(f"a chunk of {chunk_length} tokens does not fit a cache of max_length={limit}")
    needed = jnp.max(stream.length + _count(stream, chunk_length, valid))
    if isinstance(needed, Tracer):  # inside a transformation, if of constants
        return
    if needed > limit:
        raise ValueError(
            f"the cache would hold {needed} tokens, but max_length={limit}; make it with max_length={needed} or more"
        )

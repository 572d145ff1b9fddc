"""What every codec promises, checked in one call: for whoever writes a codec of their own."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.accounting import nbytes, payload_nbytes
from kakeya_jax.codec import Codec, CodecConfig, round_trip
from kakeya_jax.testing import synthetic_kv
from kakeya_jax.typing import Array, Float

SAME = 1e-3
"""Reconstructions whose squared difference is at most this share of their energy count as equal: codecs that fit each
block take another path where sums are rounded in another order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conformance:
    """What was measured of a codec that keeps its promises.

    Attributes:
        payload_bits: bits of indices for each value of a block.
        all_in_bits: the same with everything else that is stored for the block.
        key_error: relative mean squared error of synthetic keys, around zero (``testing.synthetic_kv``).
        value_error: the same of synthetic values.
    """

    payload_bits: float
    all_in_bits: float
    key_error: float
    value_error: float


def check_codec(config: CodecConfig, head_dim: int = 64, *, tables: Mapping[str, Array] | None = None) -> Conformance:
    """Checks a codec on synthetic keys and values, and on blocks that are zero, constant, huge or not finite.

    Checked are: the shape and dtype of what is decoded; that bytes follow from shapes and that some of them are
    payload; that ``jit``, ``vmap`` and a second call change nothing; strict dtype promotion; and that
    whatever goes in, finite values come out, zeros for a block of zeros.

    Args:
        config: of a codec that codes each head alone.
        head_dim: dimension of the vectors.
        tables: calibrated tables, for codecs that need them.

    Raises:
        ValueError: the codec codes several heads at once, or breaks promises; the message names every broken one.
    """
    if config.joint_heads:
        raise ValueError(f"{config.name} codes all heads at once; check_codec checks codecs of one head")
    codec = config.build(head_dim, tables=tables)
    kinds = {kind: _blocks(config, head_dim, kind) for kind in ("key", "value")}
    broken = list(_broken(codec, kinds["value"]))
    if broken:
        raise ValueError(f"codec {config.name!r} breaks {len(broken)} of its promises: {'; '.join(broken)}")
    code = codec.encode(kinds["key"][0])
    errors = {kind: _difference(round_trip(codec, blocks), blocks) for kind, blocks in kinds.items()}
    size = kinds["key"][0].size
    return Conformance(
        payload_bits=8 * payload_nbytes(code) / size,
        all_in_bits=8 * nbytes(code) / size,
        key_error=errors["key"],
        value_error=errors["value"],
    )


def _blocks(config: CodecConfig, head_dim: int, kind: Any) -> Float[Array, "2 n d"]:
    return synthetic_kv(0, 2 * config.block_size, head_dim, kind).reshape(2, config.block_size, head_dim)


def _broken(codec: Codec, blocks: Float[Array, "2 n d"]) -> Iterator[str]:
    """The promises that are broken, in words."""
    block = blocks[0]
    code = codec.encode(block)
    decoded = codec.decode(code)
    if decoded.shape != block.shape or decoded.dtype != jnp.float32:
        yield f"decode gives {decoded.dtype}{list(decoded.shape)} for a block float32{list(block.shape)}"
        return  # what follows compares with it
    if payload_nbytes(code) == 0:
        yield "no stored array is marked payload_field"
    expected = jax.eval_shape(codec.encode, block)
    if _shapes(code) != _shapes(expected):
        yield "the code's shapes differ under jax.eval_shape, so that bytes cannot be known beforehand"
    again = codec.decode(codec.encode(block))
    if not bool((again == decoded).all()):
        yield "encoding twice gives two codes"
    jitted = jax.jit(codec.decode)(jax.jit(codec.encode)(block))
    if not _difference(jitted, decoded) <= SAME:
        yield "jit changes the result"
    if not _difference(round_trip(codec, blocks)[0], decoded) <= SAME:
        yield "vmap over blocks changes the result: a block depends on its neighbours"
    yield from _raised("strict dtype promotion fails", lambda: _strict(codec, block))
    yield from _extremes(codec, block)


def _extremes(codec: Codec, block: Float[Array, "n d"]) -> Iterator[str]:
    zero, ordinary = np.zeros(block.shape, np.float32), np.asarray(block)
    some_nan, some_inf = ordinary.copy(), ordinary.copy()
    some_nan[0, 0], some_inf[0, 0] = np.nan, -np.inf
    blocks = {
        "zeros": zero,
        "a constant": zero + 3.0,
        "1e30": np.sign(ordinary) * np.float32(1e30),
        "a NaN": some_nan,
        "an infinity": some_inf,
    }
    decoded = np.asarray(round_trip(codec, jnp.asarray(np.stack(list(blocks.values())))))
    for name, each in zip(blocks, decoded, strict=True):
        if not np.isfinite(each).all():
            yield f"a block of {name} or with one is decoded to values that are not finite; see numeric.finite"
    if np.isfinite(decoded[0]).all() and np.abs(decoded[0]).max() > 0.1 * np.abs(ordinary).max():
        yield f"a block of zeros is decoded to values up to {np.abs(decoded[0]).max():.3g}"


def _strict(codec: Codec, block: Float[Array, "n d"]) -> None:
    with jax.numpy_dtype_promotion("strict"):
        jax.jit(codec.decode)(jax.jit(codec.encode)(block))


def _raised(what: str, function: Callable[[], None]) -> Iterator[str]:
    try:
        function()
    except Exception as error:  # whatever the codec raises is what its author must see
        yield f"{what}: {str(error).splitlines()[0]}"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def _difference(found: Array, wanted: Array) -> float:
    """Squared difference as a share of the energy wanted; NaN where one is not finite."""
    return float(jnp.sum((found - wanted) ** 2) / jnp.maximum(jnp.sum(wanted**2), 1e-30))

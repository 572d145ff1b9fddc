"""Round to nearest on an absolute-maximum grid: ``int8`` for each token or group, ``int4`` in groups along the head
dimension.

The plain baselines of the field: the grid is symmetric (``scale = absmax / qmax``) or affine (``scale = range /
levels`` with a float16 minimum).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from kakeya_jax import level_words, token_tiles
from kakeya_jax.affine import dequantize_affine, dequantize_symmetric, quantize_affine, quantize_symmetric
from kakeya_jax.codec import CodecConfig
from kakeya_jax.numeric import finite
from kakeya_jax.pytree import payload_field, pytree_dataclass, side_field, static_field
from kakeya_jax.typing import Array, Float, Int, StreamName, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Config(CodecConfig):
    """Symmetric int8 with a float16 scale for each token, 8 + ``16 / D`` bits per value, or for each group of one.

    Attributes:
        group_size: values that share a scale; must divide the head dimension. ``None`` means the whole token; 32 is
            ``q8_0`` of llama.cpp, 8.5 bits per value.
    """

    name: ClassVar[str] = "int8"
    source: ClassVar[str] = "plain baseline, round to nearest"

    group_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is not None:
            _check_group_size(self.name, self.group_size)

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Integer":
        """See ``CodecConfig.build``."""
        del layer, tables
        group_size = head_dim if self.group_size is None else self.group_size
        _check_divides(self.name, group_size, head_dim)
        along_tokens = stream == "value" and group_size == head_dim
        return Integer(config=self, bits=8, group_size=group_size, affine=False, along_tokens=along_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int4Config(CodecConfig):
    """Int4 in groups along the head dimension.

    Attributes:
        group_size: values that share a scale; must divide the head dimension.
        affine: store a float16 minimum beside the float16 scale (16 levels from minimum to maximum) instead of a grid
            symmetric about zero (15 levels).
    """

    name: ClassVar[str] = "int4"
    source: ClassVar[str] = "plain baseline, round to nearest"

    group_size: int = 32
    affine: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_group_size(self.name, self.group_size)

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Integer":
        """See ``CodecConfig.build``."""
        del layer, tables
        _check_divides(self.name, self.group_size, head_dim)
        along_tokens = stream == "value"
        return Integer(config=self, bits=4, group_size=self.group_size, affine=self.affine, along_tokens=along_tokens)


@pytree_dataclass
class IntegerCode:
    """Packed codes ``[n, d * bits / 8]``, or along tokens the rows of ``token_tiles``, with float16 ``scale``
    ``[n, d / group]`` and, if affine, ``minimum``.

    Codes are two's complement: of the level, or if affine of the level over 8. Those of 4 bits are ``level_words``,
    along channels in lane order.
    """

    codes: Array = payload_field()
    scale: Array = side_field()
    minimum: Array | None = side_field()


@pytree_dataclass
class Integer:
    """The codec of ``Int8Config`` and ``Int4Config``.

    Attributes:
        along_tokens: whether codes lie as a kernel reads values (``token_tiles``). Codes of 4 bits do so in blocks of
            whole words of them.
    """

    config: Int8Config | Int4Config = static_field()
    bits: int = static_field()
    group_size: int = static_field()
    affine: bool = static_field()
    along_tokens: bool = static_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> IntegerCode:
        """Rounds to the nearest grid point; the grid uses the scale as stored (float16), so decode adds no
        error.

        Non-finite inputs count as zero and magnitudes are clipped to the range float16 scales can express.
        """
        del key
        n, d = block.shape
        x = finite(block).reshape(n, d // self.group_size, self.group_size)
        if self.affine:
            codes, scale, minimum = quantize_affine(x, self.bits, axis=-1)
        else:
            (codes, scale), minimum = quantize_symmetric(x, self.bits, axis=-1), None
        return IntegerCode(codes=self._pack(codes.reshape(n, d) - self._zero), scale=scale, minimum=minimum)

    def decode(self, code: IntegerCode) -> Float[Array, "n d"]:
        """``scale * (code - qmax)``, or ``minimum + scale * code`` if affine."""
        n, groups = code.scale.shape
        d = groups * self.group_size
        codes = (self._unpack(code.codes, n, d) + self._zero).reshape(n, groups, self.group_size)
        if code.minimum is None:
            x = dequantize_symmetric(codes, code.scale, self.bits, axis=-1)
        else:
            x = dequantize_affine(codes, code.scale, code.minimum, axis=-1)
        return x.reshape(n, d)

    @property
    def _zero(self) -> int:
        """The code that is packed as 0."""
        return 2 ** (self.bits - 1) - (not self.affine)

    def _tokens_inside(self, n: int) -> bool:
        """Whether a channel's tokens lie side by side."""
        return self.along_tokens and (self.bits == 8 or n % 8 == 0)

    def _pack(self, levels: Int[Array, "n d"]) -> UInt8[Array, "rows packed"]:
        inside = self._tokens_inside(len(levels))
        rows = token_tiles.to_rows(levels) if inside else levels
        if self.bits == 8:
            return rows.astype(jnp.uint8)
        return level_words.pack(rows if inside else level_words.to_lane_order(rows), 4)

    def _unpack(self, packed: UInt8[Array, "rows packed"], n: int, d: int) -> Int[Array, "n d"]:
        inside = self._tokens_inside(n)
        if self.bits == 8:
            rows = packed.astype(jnp.int8).astype(jnp.int32)
        else:
            rows = level_words.unpack(packed, 4, token_tiles.row_tokens(n) if inside else d)
            rows = rows if inside else level_words.from_lane_order(rows)
        return token_tiles.from_rows(rows, n) if inside else rows


def _check_group_size(codec: str, group_size: int) -> None:
    if group_size < 1:
        raise ValueError(f"{codec}: group_size={group_size} must be at least 1")


def _check_divides(codec: str, group_size: int, head_dim: int) -> None:
    if head_dim % group_size:
        raise ValueError(f"{codec}: group_size={group_size} must divide head_dim={head_dim}")

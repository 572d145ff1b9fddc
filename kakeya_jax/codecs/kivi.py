"""KIVI: affine integers, keys in groups of tokens for each channel, values in groups of channels for each
token.

Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv:2402.02750. Keys have
outlier channels, and a group that stays inside one channel keeps them from widening the grid of the others.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from kakeya_jax import level_words, pair_words, token_tiles
from kakeya_jax.affine import dequantize_affine, quantize_affine
from kakeya_jax.codec import CodecConfig
from kakeya_jax.numeric import finite
from kakeya_jax.pytree import payload_field, pytree_dataclass, side_field, static_field
from kakeya_jax.typing import Array, Float, Int, StreamName, UInt8

Axis = Literal["channel", "token"]
"""What a group stays inside: one channel (it spans tokens) or one token (it spans channels)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KiviConfig(CodecConfig):
    """``bits`` per value and ``32 / group_size`` bits of scale and minimum.

    Attributes:
        block_size: the paper's residual length R: so many tokens stay exact until the cache closes the block
            and quantises it whole. A multiple of ``group_size``, so that no group straddles blocks.
        bits: 2 or 4.
        group_size: values that share a scale and a minimum.
        axis: ``None`` takes the paper's choice, ``"channel"`` for keys and ``"token"`` for values.
    """

    name: ClassVar[str] = "kivi"
    source: ClassVar[str] = "KIVI, arXiv:2402.02750"

    bits: int = 2
    group_size: int = 32
    axis: Axis | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (2, 4):
            raise ValueError(f"kivi: bits={self.bits} must be 2 or 4")
        if self.group_size < 1:
            raise ValueError(f"kivi: group_size={self.group_size} must be at least 1")
        if self.block_size % self.group_size:
            raise ValueError(
                f"kivi: block_size={self.block_size} must be a multiple of group_size={self.group_size}, "
                f"because groups of tokens must not straddle blocks"
            )

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Kivi":
        """See ``CodecConfig.build``."""
        del layer, tables
        axis = self.axis or ("channel" if stream == "key" else "token")
        if axis == "token" and head_dim % self.group_size:
            raise ValueError(f"kivi: group_size={self.group_size} must divide head_dim={head_dim}")
        return Kivi(config=self, axis=axis, along_tokens=stream == "value")


@pytree_dataclass
class KiviCode:
    """Packed codes ``[n, d * bits / 8]`` (``pair_words``), those of values along tokens, in the rows of
    ``token_tiles``, if the block has a multiple of 16; float16 ``scale`` and ``minimum`` of each group.

    Along tokens, codes, those of 4 bits less 8, are ``level_words``.
    Groups are ``[n / group, d]`` along tokens (axis ``"channel"``), ``[n, d / group]`` along channels
    (``"token"``).
    """

    codes: Array = payload_field()
    scale: Array = side_field()
    minimum: Array = side_field()


@pytree_dataclass
class Kivi:
    """The codec of ``KiviConfig``.

    Attributes:
        along_tokens: whether codes lie as a kernel reads values (``token_tiles``).
    """

    config: KiviConfig = static_field()
    axis: Axis = static_field()
    along_tokens: bool = static_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> KiviCode:
        """Rounds to ``2**bits`` levels between the minimum and the maximum of each group (as stored in
        float16).

        Raises:
            ValueError: groups of tokens do not divide the block.
        """
        del key
        n, d = block.shape
        if self.axis == "channel" and n % self.config.group_size:
            raise ValueError(f"kivi: group_size={self.config.group_size} must divide the block's {n} tokens")
        groups = self._grouped(finite(block))
        codes, scale, minimum = quantize_affine(groups, self.config.bits, self._group_axis)
        return KiviCode(codes=self._pack(codes.reshape(n, d)), scale=scale, minimum=minimum)

    def decode(self, code: KiviCode) -> Float[Array, "n d"]:
        """``minimum + scale * code``."""
        codes = self.codes_of(code)
        grid = self._grouped(codes), code.scale, code.minimum
        return dequantize_affine(*grid, self._group_axis).reshape(codes.shape)

    def codes_of(self, code: KiviCode) -> Int[Array, "n d"]:
        """The step of every value, int32."""
        size, bits = self.config.group_size, self.config.bits
        n, d = code.scale.shape
        n, d = (n * size, d) if self.axis == "channel" else (n, d * size)
        if not self._tokens_inside(n):
            return pair_words.unpack(code.codes, bits, d)
        rows = level_words.unpack(code.codes, bits, token_tiles.row_tokens(n))
        return token_tiles.from_rows(rows, n) + self._zero

    def _tokens_inside(self, n: int) -> bool:
        """Whether a channel's tokens lie side by side."""
        return self.along_tokens and n % 16 == 0

    def _pack(self, codes: Int[Array, "n d"]) -> UInt8[Array, "rows packed"]:
        bits = self.config.bits
        if not self._tokens_inside(len(codes)):
            return pair_words.pack(codes, bits)
        return level_words.pack(token_tiles.to_rows(codes) - self._zero, bits)

    @property
    def _zero(self) -> int:
        """The step that is packed as 0 along tokens."""
        return 8 if self.config.bits == 4 else 0

    @property
    def _group_axis(self) -> int:
        return 1 if self.axis == "channel" else 2

    def _grouped(self, x: Array) -> Array:
        """``[n / group, group, d]`` or ``[n, d / group, group]``: the group is ``_group_axis``."""
        n, d = x.shape
        size = self.config.group_size
        return x.reshape(n // size, size, d) if self.axis == "channel" else x.reshape(n, d // size, size)

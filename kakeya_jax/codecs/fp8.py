"""8-bit floating point: e4m3 (a sign, four bits of exponent, three of mantissa) with a scale for each vector, or none.

Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433. The usual 8-bit cache of serving stacks, which
take one calibrated scale for a tensor or a head. Here a vector has its own, so that nothing is calibrated:
``scale = absmax / 448`` rounded to float16, and a value is ``scale * e4m3(x / scale)``, to nearest even. What is beyond
448, the largest number of the format, becomes 448, never its NaN.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from kakeya_jax.affine import divide_or_zero
from kakeya_jax.codec import CodecConfig
from kakeya_jax.numeric import finite, to_f16
from kakeya_jax.pytree import payload_field, pytree_dataclass, side_field, static_field
from kakeya_jax.typing import Array, Float, StreamName, UInt8

LARGEST = 448.0
"""Of e4m3."""

_SMALLEST_NORMAL = 2.0**-6
_STEP = 2.0**-9
"""Between numbers below the smallest normal one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fp8Config(CodecConfig):
    """e4m3 with a float16 scale for each vector, 8 + ``16 / D`` bits per value; without scales 8.

    Attributes:
        scale: ``"vector"``, or ``None`` for a plain cast that saturates at 448, as serving stacks do without calibrated
            scales.
    """

    name: ClassVar[str] = "fp8"
    source: ClassVar[str] = "FP8 Formats for Deep Learning, arXiv:2209.05433"

    scale: Literal["vector"] | None = "vector"

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Fp8":
        """See ``CodecConfig.build``."""
        del head_dim, layer, stream, tables
        return Fp8(config=self)


@pytree_dataclass
class Fp8Code:
    """Bits of e4m3 numbers, ``codes`` ``[n, d]``, and float16 ``scale`` ``[n]`` if there are scales."""

    codes: Array = payload_field()
    scale: Array | None = side_field()


@pytree_dataclass
class Fp8:
    """The codec of ``Fp8Config``."""

    config: Fp8Config = static_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> Fp8Code:
        """Rounds to nearest even, relative to the scale as stored; non-finite inputs count as zero or are clipped."""
        del key
        x, scale = finite(block), None
        if self.config.scale is not None:
            scale = to_f16(jnp.max(jnp.abs(x), axis=1) / LARGEST)
            x = divide_or_zero(x, scale[:, None])
        return Fp8Code(codes=_to_bits(x), scale=scale)

    def decode(self, code: Fp8Code) -> Float[Array, "n d"]:
        """``scale * e4m3``."""
        x = jax.lax.bitcast_convert_type(code.codes, jnp.float8_e4m3fn).astype(jnp.float32)
        return x if code.scale is None else x * code.scale.astype(jnp.float32)[:, None]


def without_nan(codes: UInt8[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Any bytes with the two that are no number replaced by the largest numbers: what ``encode`` could have made."""
    return jnp.where(codes & 0x7F == 0x7F, codes ^ 1, codes)


def _to_bits(x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """The nearest e4m3, saturating.

    Rounded before it is converted: a conversion through another type would round twice.
    """
    x = jnp.clip(x, -LARGEST, LARGEST)
    normal = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=3)
    small = jnp.round(x / _STEP) * _STEP
    rounded = jnp.where(jnp.abs(x) < _SMALLEST_NORMAL, small, normal)
    return jax.lax.bitcast_convert_type(rounded.astype(jnp.float8_e4m3fn), jnp.uint8)

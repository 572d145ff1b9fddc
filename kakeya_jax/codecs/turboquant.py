"""TurboQuant: rotate at random, then quantise every coordinate with the optimal quantiser of a Gaussian.

Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate",
arXiv:2504.19874; the QJL variant adds the quantised Johnson-Lindenstrauss sketch of the residual
(arXiv:2406.03482), which makes inner products unbiased at the price of about one bit of mean squared error.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from kakeya_jax import bitpack, code_words, token_tiles
from kakeya_jax.byte_levels import rounded
from kakeya_jax.codec import CodecConfig
from kakeya_jax.lloyd_max import dequantize, gaussian_levels, quantize
from kakeya_jax.numeric import EPS, finite, to_f16
from kakeya_jax.pytree import payload_field, pytree_dataclass, seeded_field, side_field, static_field
from kakeya_jax.rotation import RotationKind, haar_rotation, rotate, rotation_matrix, unrotate
from kakeya_jax.typing import Array, Float, Int, StreamName, UInt8

_SKETCH_SEED_OFFSET = 1000
"""The sketch's rotation is drawn from the first rotation's seed plus this (as in the reference)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurboQuantConfig(CodecConfig):
    """``bits`` per value and one float16 scale per token (two with ``qjl``).

    Attributes:
        bits: 1 to 8; with ``qjl`` one of them is the sketch's, so 2 to 8.
        norm_correction: give every decoded vector exactly its own norm (the quantised direction is not of unit
            length).
        qjl: code ``bits - 1`` bits and the signs of a random rotation of the residual.
        qjl_shrinkage: factor on the decoded residual: 1 keeps inner products unbiased, ``2 / pi`` minimises the
            mean squared error.
        rotation: ``"haar"`` as in the paper, or ``"hadamard"`` (signs, Walsh-Hadamard, signs; head dimensions
            that are powers of two), which is as good, and faster in the attention kernels.
        seed: layer ``l`` rotates its keys with seed ``seed + 2 l`` and its values with ``seed + 2 l + 1``.
    """

    name: ClassVar[str] = "turboquant"
    source: ClassVar[str] = "TurboQuant, arXiv:2504.19874; qjl: arXiv:2406.03482"

    bits: int = 3
    norm_correction: bool = True
    qjl: bool = False
    qjl_shrinkage: float = 1.0
    rotation: RotationKind = "haar"
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest = 2 if self.qjl else 1
        if not fewest <= self.bits <= 8:
            raise ValueError(f"turboquant: bits={self.bits} must be between {fewest} and 8 (qjl={self.qjl})")
        if not 0 < self.qjl_shrinkage <= 1:
            raise ValueError(f"turboquant: qjl_shrinkage={self.qjl_shrinkage} must be in (0, 1]")

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "TurboQuant":
        """See ``CodecConfig.build``."""
        del tables
        seed = self.seed + 2 * layer + (stream == "value")
        sketch = jnp.asarray(haar_rotation(head_dim, seed + _SKETCH_SEED_OFFSET)) if self.qjl else None
        return TurboQuant(
            config=self,
            stream=stream,
            rotation=jnp.asarray(rotation_matrix(self.rotation, head_dim, seed)),
            levels=jnp.asarray(coordinate_levels(self.bits - self.qjl)),
            sketch=sketch,
        )


def coordinate_levels(bits: int) -> np.ndarray:
    """Levels ``[2**bits]`` for the coordinates of a rotated vector of norm ``sqrt(D)``.

    One and two bits are the constants of the paper, ``sqrt(2 / pi)`` and 0.453, 1.51; more bits are the
    Lloyd-Max levels of N(0, 1), to which the distribution of a coordinate tends. Two to four bits are rounded to bytes
    (``byte_levels``), with which kernels compute: 0.05 % more mean squared error at 4 bits, less at 2 and 3.
    """
    half = {1: (math.sqrt(2 / math.pi),), 2: (0.453, 1.51)}.get(bits)
    if half is None:
        levels = gaussian_levels(bits)
    else:
        levels = np.array([-level for level in reversed(half)] + list(half), dtype=np.float32)
    return rounded(levels) if bits in (2, 3, 4) else levels


@pytree_dataclass
class TurboQuantCode:
    """Packed indices and the float16 factor ``scale`` ``[n]`` of their levels.

    Indices are ``[n, ceil(d b / 8)]``, packed along channels; those of values along tokens, in the rows of
    ``token_tiles``, if the block has a multiple of 16 of them and ``b`` is 2, 3, 4 or 8 (``code_words``): each the way
    in which a matrix product reads it.

    ``scale`` is the vector's norm over the length of its vector of levels (over ``sqrt(D)`` without norm
    correction). ``signs`` ``[n, ceil(d / 8)]`` and ``residual_norm`` ``[n]`` float16 are the QJL sketch,
    ``None`` without it.
    """

    indices: Array = payload_field()
    scale: Array = side_field()
    signs: Array | None = payload_field()
    residual_norm: Array | None = side_field()


@pytree_dataclass
class TurboQuant:
    """The codec of ``TurboQuantConfig``."""

    config: TurboQuantConfig = static_field()
    stream: StreamName = static_field()
    rotation: Array = seeded_field()
    levels: Array = seeded_field()
    sketch: Array | None = seeded_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> TurboQuantCode:
        """Nearest level of every coordinate of the rotated direction.

        Vectors with a norm of at most 2^-23 decode to exactly zero; a scale beyond float16 saturates.
        """
        del key
        x = finite(block)
        d = x.shape[-1]
        norm = _norm(x)
        unit_rms = jnp.where(norm > EPS, math.sqrt(d) / jnp.maximum(norm, EPS), 0.0)
        indices = quantize(rotate(x * unit_rms, self.rotation), self.levels)
        length = _norm(dequantize(indices, self.levels)) if self.config.norm_correction else math.sqrt(d)
        scale = to_f16(jnp.where(norm > EPS, norm / length, 0.0)[:, 0])
        packed = self._pack(indices)
        if self.sketch is None:
            return TurboQuantCode(indices=packed, scale=scale, signs=None, residual_norm=None)
        residual = x - self._decode_levels(indices, scale)
        signs = (rotate(residual, self.sketch) >= 0).astype(jnp.int32)
        return TurboQuantCode(
            indices=packed,
            scale=scale,
            signs=bitpack.pack(signs, 1),
            residual_norm=to_f16(jnp.where(norm > EPS, _norm(residual), 0.0)[:, 0]),
        )

    def decode(self, code: TurboQuantCode) -> Float[Array, "n d"]:
        """``scale * rotation.T levels[indices]``, and the sketch's estimate of the residual."""
        d = self.rotation.shape[0]
        x = self._decode_levels(self.indices_of(code), code.scale)
        if self.sketch is None or code.signs is None or code.residual_norm is None:
            return x
        signs = 2.0 * bitpack.unpack(code.signs, 1, d).astype(jnp.float32) - 1.0
        factor = math.sqrt(math.pi / 2 / d) * self.config.qjl_shrinkage
        return x + code.residual_norm.astype(jnp.float32)[:, None] * unrotate(factor * signs, self.sketch)

    def indices_of(self, code: TurboQuantCode) -> Int[Array, "n d"]:
        """The index of every coordinate's level, int32."""
        n = len(code.scale)
        if self._along_tokens(n):
            rows = code_words.unpack(code.indices, self._index_bits, token_tiles.row_tokens(n))
            return token_tiles.from_rows(rows, n)
        return code_words.unpack(code.indices, self._index_bits, self.rotation.shape[0])

    @property
    def _index_bits(self) -> int:
        return self.config.bits - self.config.qjl

    def _along_tokens(self, n: int) -> bool:
        return self.stream == "value" and code_words.in_units(n, self._index_bits)

    def _pack(self, indices: Int[Array, "n d"]) -> UInt8[Array, "rows packed"]:
        rows = token_tiles.to_rows(indices) if self._along_tokens(len(indices)) else indices
        return code_words.pack(rows, self._index_bits)

    def _decode_levels(self, indices: Array, scale: Array) -> Array:
        return scale.astype(jnp.float32)[:, None] * unrotate(dequantize(indices, self.levels), self.rotation)


def _norm(x: Array) -> Array:
    """Euclidean norm of each vector, ``[n, 1]``."""
    return jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))

"""KakeyaLattice: a Hadamard transform, one scale per vector, and blocks of D4 or E8 lattice points.

After FluffyAIcode's KakeyaLattice (LLM-KV--Cache-compress), with two differences. Its clamp to ``[-Q, Q]`` takes points
of E8 out of the lattice (in one Gaussian vector of six at D = 128); here the closest lattice point *within* the box is
taken. And its bits are those of a formula, no packer exists; here every point has a number that is stored and read back
(see ``lattices``).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from kakeya_jax import lattices, wide_index
from kakeya_jax.codec import CodecConfig
from kakeya_jax.hadamard import hadamard_transform
from kakeya_jax.lattices import LatticeName
from kakeya_jax.numeric import EPS, finite, to_f16
from kakeya_jax.pytree import payload_field, pytree_dataclass, side_field, static_field
from kakeya_jax.typing import Array, Float, StreamName


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatticeConfig(CodecConfig):
    """A lattice point for every 4 (D4) or 8 (E8) coordinates, and two float16 per token (one with ``one_scale``).

    Stored bits of a block, for ``scale_levels`` Q; the published formulas are ``ceil(4 log2(2 Q + 1) - 1)`` for D4 and
    ``ceil(8 log2(2 Q + 1))`` for E8, which leaves the parity of E8's sums unused::

        Q                  1    2    4    5   10   19   38   76  152
        D4                 6    9   12   13   17   21   25   29   33
        D4, published      6    9   12   13   17   21   25   29   33
        E8                12   18   25   28   35   43   51   59   67
        E8, published     13   19   26   28   36   43   51   59   67

    Attributes:
        lattice: ``"d4"`` or ``"e8"``.
        scale_levels: ``Q``: the largest coordinate of a rotated vector becomes ``Q``; 1 to 32767.
        one_scale: store the product of norm and largest coordinate, which is all that decoding needs, instead of both
            as published.
    """

    name: ClassVar[str] = "lattice"
    source: ClassVar[str] = "KakeyaLattice; closest point: Conway and Sloane, 1982"

    lattice: LatticeName = "e8"
    scale_levels: int = 10
    one_scale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.scale_levels <= lattices.MAX_SCALE_LEVELS:
            raise ValueError(
                f"lattice: scale_levels={self.scale_levels} must be between 1 and {lattices.MAX_SCALE_LEVELS}"
            )

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Lattice":
        """See ``CodecConfig.build``."""
        del layer, stream, tables
        length = lattices.block_length(self.lattice)
        if head_dim < length or head_dim & (head_dim - 1):
            raise ValueError(
                f"lattice: head_dim={head_dim} must be a power of two and at least {length}, the length of a "
                f"{self.lattice} point; use another codec"
            )
        return Lattice(config=self, head_dim=head_dim)


@pytree_dataclass
class LatticeCode:
    """Packed numbers of the points ``[n, bytes]`` and float16 factors ``[n]`` of each vector.

    ``norm`` is the root mean square of the vector, which for a head dimension that is a power of four is the published
    norm but for an exact factor; ``peak`` the largest magnitude of the rotated vector over it. With ``one_scale``,
    ``norm`` is the product and ``peak`` is ``None``.
    """

    indices: Array = payload_field()
    norm: Array = side_field()
    peak: Array | None = side_field()


@pytree_dataclass
class Lattice:
    """The codec of ``LatticeConfig``: no tables, the transform has no random signs."""

    config: LatticeConfig = static_field()
    head_dim: int = static_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> LatticeCode:
        """The closest point of the lattice in the box to each block of the rotated, scaled vector.

        Vectors with a norm of at most 2^-23 decode to exactly zero; a scale beyond float16 saturates.
        """
        del key
        config = self.config
        x = finite(block)
        norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) / self.head_dim)
        is_zero = norm <= EPS / math.sqrt(self.head_dim)
        rotated = self._transform(x / jnp.where(is_zero, 1.0, norm))
        norm = jnp.where(is_zero, 0.0, norm)
        peak = jnp.max(jnp.abs(rotated), axis=-1, keepdims=True)
        stored_peak = peak if config.one_scale else to_f16(peak).astype(jnp.float32)
        scaled = rotated * (config.scale_levels / jnp.where(is_zero, 1.0, stored_peak))
        blocks = scaled.reshape(len(x), -1, lattices.block_length(config.lattice))
        points = lattices.closest_point(blocks, config.lattice, config.scale_levels)
        number = lattices.point_index(points, config.lattice, config.scale_levels)
        return LatticeCode(
            indices=wide_index.pack(number, self._index_bits),
            norm=to_f16(norm * peak if config.one_scale else norm)[:, 0],
            peak=None if config.one_scale else to_f16(peak)[:, 0],
        )

    def decode(self, code: LatticeCode) -> Float[Array, "n d"]:
        """``norm peak / Q`` times the points, rotated back."""
        config = self.config
        blocks = self.head_dim // lattices.block_length(config.lattice)
        number = wide_index.unpack(code.indices, self._index_bits, blocks)
        points = lattices.indexed_point(number, config.lattice, config.scale_levels)
        scale = code.norm.astype(jnp.float32)
        if code.peak is not None:
            scale = scale * code.peak.astype(jnp.float32)
        rotated = points.reshape(len(code.norm), self.head_dim)
        return self._transform(rotated) * (scale / config.scale_levels)[:, None]

    @property
    def _index_bits(self) -> int:
        return lattices.index_bits(self.config.lattice, self.config.scale_levels)

    def _transform(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Orthonormal, and its own inverse."""
        return hadamard_transform(x) * (self.head_dim**-0.5)

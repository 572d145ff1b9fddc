"""Sizes of ``exact_program``."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.float_shape import FloatShape
from kakeya_jax.stream import Geometry

DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
"""Of exact keys and values that it takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactShape(FloatShape):
    """What ``exact_program`` is made for: as ``FloatShape``, of which ``splits`` are the programs that share a head's
    exact tokens; ``capacity`` says nothing.

    Attributes:
        num_kv_heads: of a row of the batch.
        geometry: of the streams.
        key_dtype: of exact keys.
        turns: whether keys are stored before their rotary embedding; then products are of bfloat16.
    """

    num_kv_heads: int
    geometry: Geometry
    key_dtype: Any
    turns: bool = False

    @property
    def stages(self) -> int:
        """Tiles that a warp has room for: two, or else one, as there are few."""
        return 2 if 2 * self.stage_nbytes <= self.most_nbytes else 1

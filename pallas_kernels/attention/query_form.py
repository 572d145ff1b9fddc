"""How programs take a head's queries: in which coordinates, and where in shared memory they are for a while."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

_FLOAT32, _BFLOAT16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)

Coordinates = Literal["rotated", "hadamard", "channels", "lanes"]
"""What codes are of: a vector after a rotation, after one of kind ``hadamard``, its channels, or its channels in lane
order (``level_words``)."""

TOPS = 0
"""Where the largest coordinate of each query and warp is, in the last stage of the first warp,"""

FACTORS = 256
"""and where a warp has eight factors of logits, in its own last stage, and behind them"""

ROWS = FACTORS + 32
"""the parts of the queries, one column of products after the other (``query_columns``)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryForm:
    """What queries are, and what becomes of them.

    Attributes:
        dtype: of the queries.
        scale: factor of their logits, to the base 2, the unit of levels in it.
        parts: float16 or bfloat16 if numbers are sums of two of those, relative to the largest; None if they are two
            bytes, high and low.
        coordinates: of the keys' codes.
    """

    dtype: Any = _FLOAT32
    scale: float = 1.0
    parts: Any = None
    coordinates: Coordinates = "channels"

    @property
    def rotated(self) -> bool:
        """Whether programs read a rotation."""
        return self.coordinates in ("rotated", "hadamard")

    @property
    def low_parts(self) -> bool:
        """Whether there are any: not if a query, as it comes, is a high part, of the smallest entries to 2^-25 of the
        largest."""
        as_it_comes = not self.rotated and self.dtype in (_BFLOAT16, self.parts)
        return self.parts is None or not as_it_comes

    @property
    def nbytes(self) -> int:
        """Of a part."""
        return 1 if self.parts is None else 2

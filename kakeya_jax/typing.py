"""Array types and axis names used in signatures.

Axis letters: ``B`` batch, ``T`` query tokens, ``S`` cached tokens, ``H`` query heads, ``K`` key/value heads, ``D`` head
dimension, ``n`` tokens of a block, ``d`` dimension of a block's vectors, ``r`` rank.
"""

from typing import Literal

from jax import Array as Array
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Int as Int
from jaxtyping import Shaped as Shaped
from jaxtyping import UInt8 as UInt8
from jaxtyping import UInt32 as UInt32

StreamName = Literal["key", "value"]
"""Which of a layer's two streams."""

StoredName = Literal["key", "value", "both"]
"""What a layer stores apart: its two streams, or both as one (``JointLayerCache``)."""

RopeClass = Literal["pre", "post"]
"""Whether K is stored before its rotary embedding (quality codecs) or after it (fast codecs)."""

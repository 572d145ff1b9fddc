"""What exact keys that are stored before their rotary embedding are turned by."""

import jax.numpy as jnp
import numpy as np

from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array


def exact_turns(stream: Stream, rope: Rope) -> list[Array]:
    """Cosines and sines of the positions of sinks and tail, float32 ``[B, tokens, D]``."""
    batch, _, sinks, _ = stream.sinks.shape
    of_sinks = np.broadcast_to(np.arange(sinks, dtype=np.float32), (batch, sinks))[..., None] * rope.frequencies
    of_tail = stream.tail_positions()[..., None].astype(jnp.float32) * rope.frequencies
    in_sinks = np.concatenate([np.cos(of_sinks), np.sin(of_sinks)], axis=-1) * np.float32(rope.attention_factor)
    in_tail = jnp.concatenate([jnp.cos(of_tail), jnp.sin(of_tail)], axis=-1) * rope.attention_factor
    return [jnp.asarray(in_sinks), in_tail]

"""Token shards: reading them, holding a part out, and the batch of every training step."""

import lzma
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.typing import Array, Int


def load_tokens(paths: Sequence[Path]) -> np.ndarray:
    """The tokens of all shards (``.npy`` or ``.npy.xz``, one-dimensional, unsigned integers), joined.

    Raises:
        ValueError: a shard is not a vector of unsigned integers.
    """
    shards = [_load(Path(path)) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if shard.ndim != 1 or shard.dtype.kind != "u":
            raise ValueError(f"{path} holds {shard.dtype}{list(shard.shape)}; a shard is a vector of uint16 or uint32")
    return np.concatenate(shards)


def split_held_out(tokens: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens to train on, and the last ``held_out`` of them, which are not.

    Raises:
        ValueError: nothing would be left to train on.
    """
    if not 0 <= held_out < len(tokens):
        raise ValueError(f"held_out={held_out} must be smaller than the {len(tokens)} tokens of the shards")
    cut = len(tokens) - held_out
    return tokens[:cut], tokens[cut:]


def batches_per_epoch(num_tokens: int, batch_size: int, length: int) -> int:
    """How many batches of ``batch_size`` windows of ``length + 1`` tokens one pass over the tokens gives.

    Raises:
        ValueError: not even one.
    """
    count = (num_tokens - length) // length // batch_size
    if count < 1:
        raise ValueError(
            f"{num_tokens} tokens give no batch of {batch_size} windows of {length}; "
            "use more tokens, a smaller batch or shorter windows"
        )
    return count


def batch_at(
    tokens: Int[Array, " N"], step: Int[Array, ""], *, batch_size: int, length: int, seed: int
) -> Int[Array, "B T+1"]:
    """The batch of a step: a function of the seed and the step alone, so a resumed run misses nothing.

    Every epoch cuts the tokens into windows at a new random phase, and visits each once, in a new order.
    """
    per_epoch = batches_per_epoch(tokens.shape[0], batch_size, length)
    epoch, index = jnp.divmod(step.astype(jnp.int32), jnp.int32(per_epoch))
    order_key, phase_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), epoch))
    windows = (tokens.shape[0] - length) // length
    order = jax.random.permutation(order_key, windows)
    chosen = jax.lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
    phase = jax.random.randint(phase_key, (), 0, tokens.shape[0] - windows * length)
    starts = chosen * length + phase
    return tokens[starts[:, None] + jnp.arange(length + 1, dtype=starts.dtype)].astype(jnp.int32)


def _load(path: Path) -> np.ndarray:
    if path.suffix == ".xz":
        with lzma.open(path) as file:
            return np.load(file)  # type: ignore[arg-type]
    return np.load(path)

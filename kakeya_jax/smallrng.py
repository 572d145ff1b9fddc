"""The generator that fixes the sign patterns, k-means starts and sketches of the Kakeya codec: xoshiro256++.

Seeds expand as ``rand_core`` 0.6 does (a PCG32 stream), draws convert as ``rand`` 0.8 does on a 64-bit
machine, so that a seed names the same pattern in every implementation. Plain Python, cached: everything here
runs while tracing, and its results are constants of the compiled program.
"""

import functools
from collections.abc import Iterator

import numpy as np

_MASK = 2**64 - 1


def raw_draws(seed: int) -> Iterator[int]:
    """The endless stream of 64-bit draws for a 64-bit seed."""
    return xoshiro(*_expand(seed))


def xoshiro(s0: int, s1: int, s2: int, s3: int) -> Iterator[int]:
    """Outputs of xoshiro256++ (Blackman and Vigna, arXiv:1805.01407) from a state of four 64-bit words."""
    while True:
        yield (_rotate_left(s0 + s3 & _MASK, 23) + s0) & _MASK
        shifted = s1 << 17 & _MASK
        s2 ^= s0
        s3 ^= s1
        s1 ^= s2
        s0 ^= s3
        s2 ^= shifted
        s3 = _rotate_left(s3, 45)


@functools.lru_cache(maxsize=64)
def signs(seed: int, length: int) -> np.ndarray:
    """Float32 ``[length]``: +1 where the draw's top bit is set, else -1; a prefix of any longer pattern."""
    draws = raw_draws(seed)
    return _frozen(np.array([1.0 if next(draws) >> 63 else -1.0 for _ in range(length)], np.float32))


@functools.lru_cache(maxsize=64)
def first_index_table(seed: int, length: int) -> np.ndarray:
    """Int32 ``[length + 1]``: entry ``n`` is the index below ``n`` a fresh generator draws (entry 0 is 0)."""
    return _frozen(np.array([0] + [index_below(raw_draws(seed), n) for n in range(1, length + 1)], np.int32))


def index_below(draws: Iterator[int], n: int) -> int:
    """A uniform index below ``n >= 1``: the high word of ``draw * n`` if the low word is in a full zone."""
    zone = (n << 64 - n.bit_length()) - 1
    while True:
        high, low = divmod(next(draws) * n, 2**64)
        if low <= zone:
            return high


@functools.lru_cache(maxsize=8)
def normal_matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    """Float32 standard normals ``[rows, columns]`` by Box-Muller (cosine branch), column after column.

    Every entry takes two draws: ``u1`` in ``[2**-23, 1)``, then ``u2`` in ``[0, 1)``.
    """
    draws = raw_draws(seed)
    count = 2 * rows * columns
    words = np.fromiter((next(draws) >> 41 for _ in range(count)), np.uint32, count)  # 23 bits of the high half
    uniform = (words | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    low = np.float32(2.0**-23)
    # The largest u1 is exactly 1 - 2**-23 in float32, so the generator's redraw at the upper end never
    # happens.
    u1, u2 = uniform[0::2] * (np.float32(1) - low) + low, uniform[1::2]
    entries = np.sqrt(np.float32(-2) * np.log(u1)) * np.cos(np.float32(2 * np.pi) * u2)
    return _frozen(entries.reshape(columns, rows).T)


def _expand(seed: int) -> tuple[int, int, int, int]:
    """Four state words: eight 32-bit PCG outputs, low half first."""
    state, words = seed & _MASK, []
    for _ in range(8):
        state = (state * 6364136223846793005 + 11634580027462260723) & _MASK
        word, turn = ((state >> 18 ^ state) >> 27) & 0xFFFFFFFF, state >> 59
        words.append((word >> turn | word << (32 - turn)) & 0xFFFFFFFF)
    low, high = words[0::2], words[1::2]
    return low[0] | high[0] << 32, low[1] | high[1] << 32, low[2] | high[2] << 32, low[3] | high[3] << 32


def _rotate_left(word: int, amount: int) -> int:
    return (word << amount | word >> (64 - amount)) & _MASK


def _frozen(array: np.ndarray) -> np.ndarray:
    """Marks a cached array read-only."""
    array.flags.writeable = False
    return array

"""Where the bits of each code stand in its word (``kakeya_jax.code_words``)."""

from kakeya_jax.typing import Array, Int


def crumb_shift(code: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Of two bits of a code in the word of its unit; ``code`` counts within a unit."""
    return (code >> 2 & 1) << 4 | (code & 3) << 2 | code >> 3 << 1


def nibble_shift(code: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Of four bits, eight codes to a word."""
    return (code & 7) << 2


def high_shift(code: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Of the highest of three bits, two units to a word."""
    return code & 16 | (code & 3) << 2 | (code >> 2) + 2 & 3

"""Codes of pairs of channels as kernels read them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import direction_words


@pytest.mark.parametrize(("tokens", "pairs", "width"), [(128, 32, 7), (64, 16, 5)])
def test_packing_is_undone_and_takes_no_more_bytes(tokens: int, pairs: int, width: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << width, (tokens, pairs))
    packed = jax.jit(direction_words.pack, static_argnums=1)(jnp.asarray(codes), width)
    assert packed.shape == (tokens // 64, 8 * pairs * width)
    unpacked = jax.jit(direction_words.unpack, static_argnums=(1, 2))(packed, width, pairs)
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize(
    ("width", "expected"), [(8, [(0, 4), (4, 4)]), (7, [(0, 4), (4, 2), (6, 1)]), (3, [(0, 2), (2, 1)])]
)
def test_words_are_read_by_fours_twos_and_ones(width: int, expected: list[tuple[int, int]]) -> None:
    assert direction_words.parts_of(width) == expected


def test_a_lane_reads_its_codes_in_the_order_of_products() -> None:
    """Lane 4 g + t, its words read where ``parts_of`` says, as one string of bits."""
    codes = np.random.default_rng(1).integers(0, 128, (64, 16))
    words = np.asarray(jax.jit(direction_words.pack, static_argnums=1)(jnp.asarray(codes), 7)).view("<u4")[0]
    for g, t in ((0, 0), (3, 2), (7, 3)):
        lane = 4 * g + t
        mine = [
            word
            for first, count in direction_words.parts_of(7)
            for word in words[32 * first + count * lane : 32 * first + count * (lane + 1)]
        ]
        string = sum(int(word) << 32 * place for place, word in enumerate(mine))
        for field in range(32):
            i, h, s, far = field // 8, field // 4 % 2, field // 2 % 2, field % 2
            assert string >> 7 * field & 127 == codes[16 * t + 4 * i + 2 * s + h, g + 8 * far]


def test_what_is_not_whole_tiles_is_not_packed_so_and_wrong_sizes_are_refused() -> None:
    assert direction_words.in_tiles(128, 64, 7)
    for tokens, pairs, width in ((96, 64, 7), (128, 40, 7), (128, 64, 9)):
        assert not direction_words.in_tiles(tokens, pairs, width)
    with pytest.raises(ValueError, match="a tile of 16 codes of 7 bits for each token has 896 bytes, not 895"):
        direction_words.unpack(jnp.zeros((1, 895), jnp.uint8), 7, 16)

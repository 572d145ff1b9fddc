import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kakeya_jax import bitpack


def packed_by_hand(values: list[int], bits: int) -> bytes:
    """The layout's definition, on a big integer."""
    stream = sum(value << (i * bits) for i, value in enumerate(values))
    return stream.to_bytes(bitpack.packed_nbytes(len(values), bits), "little")


pack = jax.jit(bitpack.pack, static_argnums=1)
unpack = jax.jit(bitpack.unpack, static_argnums=(1, 2))


@pytest.mark.parametrize("bits", range(1, 17))
@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 43]))
def test_pack_is_the_bit_stream_and_unpack_inverts_it(bits: int, seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.int32)
    packed = pack(values, bits)
    assert np.asarray(packed).tobytes() == packed_by_hand(values.tolist(), bits)
    np.testing.assert_array_equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("bits", range(1, 17))
def test_all_ones_and_all_zeros(bits: int) -> None:
    for value in (0, 2**bits - 1):
        values = jnp.full((2, 3, 11), value, jnp.int32)
        packed = pack(values, bits)
        chex.assert_shape(packed, (2, 3, bitpack.packed_nbytes(11, bits)))
        chex.assert_type(packed, jnp.uint8)
        np.testing.assert_array_equal(unpack(packed, bits, 11), values)


def test_batch_axes_jit_and_vmap_agree() -> None:
    values = jax.random.randint(jax.random.key(0), (4, 5, 19), 0, 2**5)
    expected = bitpack.pack(values, 5)
    np.testing.assert_array_equal(pack(values, 5), expected)
    np.testing.assert_array_equal(jax.vmap(lambda row: bitpack.pack(row, 5))(values), expected)
    np.testing.assert_array_equal(bitpack.unpack(expected, 5, 19), values)


def test_values_outside_the_range_keep_their_low_bits() -> None:
    packed = bitpack.pack(jnp.array([5, -1, 8]), 3)
    np.testing.assert_array_equal(bitpack.unpack(packed, 3, 3), [5, 7, 0])


def test_padding_bits_are_zero() -> None:
    assert int(bitpack.pack(jnp.array([7]), 3)[0]) == 7


def test_little_endian_words_and_bytes_are_one_layout() -> None:
    values = np.arange(32) % 8
    words = np.asarray(bitpack.pack(jnp.asarray(values), 3)).view("<u4")
    stream = sum(int(word) << (32 * i) for i, word in enumerate(words))
    assert [(stream >> (3 * i)) & 7 for i in range(32)] == values.tolist()


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ValueError, match="bits=17 must be between 1 and 16"):
        bitpack.pack(jnp.zeros(8, jnp.int32), 17)
    with pytest.raises(ValueError, match="10 values of 3 bits need 4 bytes, got 5"):
        bitpack.unpack(jnp.zeros(5, jnp.uint8), 3, 10)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kakeya_jax import wide_index

RADICES = (2, 3, 21, 255, 65534, 65536)


def numbers(limbs: wide_index.Limbs) -> list[int]:
    """The numbers as Python integers."""
    return [sum(int(limb) << (16 * i) for i, limb in enumerate(column)) for column in zip(*limbs, strict=True)]


def columns(digits: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(column.astype(np.uint32)) for column in digits.T]


from_digits = jax.jit(wide_index.from_digits, static_argnums=1)
to_digits = jax.jit(wide_index.to_digits, static_argnums=(1, 2, 3))


@pytest.mark.parametrize("radix", RADICES)
@given(seed=st.integers(0, 2**32 - 1))
def test_digits_make_the_number_and_come_back(radix: int, seed: int) -> None:
    digits = np.random.default_rng(seed).integers(0, radix, (5, 8))
    digits[0], digits[1] = 0, radix - 1
    number = from_digits(columns(digits), radix)
    assert len(number) == wide_index.limb_count(radix**8)
    assert numbers(number) == [sum(int(d) * radix**i for i, d in enumerate(row)) for row in digits]
    np.testing.assert_array_equal(np.stack(to_digits(number, radix, 8, radix**8), axis=1), digits)


@pytest.mark.parametrize("constant", [0, 1, 2**16 - 1, 2**31 + 5, 2**40 + 2**16 - 1])
def test_sums_and_differences_carry_over_limbs(constant: int) -> None:
    values = [0, 1, 2**16 - 1, 2**16, 2**32 - 1, 2**47 + 12345]
    limbs = tuple(jnp.asarray([(v >> (16 * i)) & 0xFFFF for v in values], jnp.uint32) for i in range(3))
    total = wide_index.add(limbs, constant, 2**48)
    assert numbers(total) == [value + constant for value in values]
    back, borrow = wide_index.subtract(total, constant)
    assert numbers(back) == values
    assert not np.any(borrow)
    _, borrow = wide_index.subtract(limbs, constant)
    np.testing.assert_array_equal(borrow, [value < constant for value in values])


def test_doubling_undoes_halving() -> None:
    values = [0, 2, 2**32, 2**48 - 2]
    limbs = tuple(jnp.asarray([(v >> (16 * i)) & 0xFFFF for v in values], jnp.uint32) for i in range(3))
    half, remainder = wide_index.divide(limbs, 2, 2**48)
    assert numbers(half) == [value // 2 for value in values]
    assert not np.any(remainder)
    assert numbers(wide_index.multiply_add(half, 2, 1, 2**48)) == [value + 1 for value in values]


@pytest.mark.parametrize("bits", [1, 12, 16, 17, 33, 67])
@pytest.mark.parametrize("count", [8, 5])
def test_packing_is_exact_and_takes_the_bits_it_says(bits: int, count: int) -> None:
    rng = np.random.default_rng(bits)
    widths = [min(16, bits - start) for start in range(0, bits, 16)]
    limbs = tuple(jnp.asarray(rng.integers(0, 2**width, (3, count)), jnp.uint32) for width in widths)
    packed = wide_index.pack(limbs, bits)
    assert packed.dtype == jnp.uint8
    assert packed.shape == (3, wide_index.packed_nbytes(count, bits))
    assert packed.shape[1] - 1 < bits * count / 8 <= packed.shape[1]
    for ours, theirs in zip(wide_index.unpack(packed, bits, count), limbs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_low_bytes_come_first() -> None:
    packed = wide_index.pack((jnp.arange(8, dtype=jnp.uint32), jnp.ones(8, jnp.uint32)), 17)
    np.testing.assert_array_equal(packed, [*range(8), *[0] * 8, 255])


def test_wrong_length_names_the_numbers() -> None:
    with pytest.raises(ValueError, match="8 numbers of 17 bits need 17 bytes, got 16"):
        wide_index.unpack(jnp.zeros(16, jnp.uint8), 17, 8)

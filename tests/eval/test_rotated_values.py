"""A weighted sum of rotated values is the same whether each is rotated back or their sum is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.codecs.turboquant import TurboQuantConfig
from kakeya_jax.eval import rotated_values
from kakeya_jax.testing import synthetic_kv


@pytest.mark.parametrize("rotation", ["haar", "hadamard"])
@pytest.mark.parametrize("bits", [2, 4])
def test_sums_are_equal_to_rounding(rotation, bits: int):
    codec = TurboQuantConfig(bits=bits, rotation=rotation).build(32, stream="value")
    code = codec.encode(synthetic_kv(0, 200, 32, "value"))
    weights = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (3, 200)), axis=-1)
    slow = np.asarray(rotated_values.decode_then_sum(codec, code, weights))
    fast = np.asarray(rotated_values.sum_then_rotate(codec, code, weights))
    assert np.abs(slow).max() > 0.1
    np.testing.assert_allclose(fast, slow, atol=2e-6)


def test_counts_and_refusal():
    slow, fast = rotated_values.multiplications(tokens=1000, queries=2, dim=64)
    assert slow == 1000 * 64 * 64 + 1000 * 64 + 2 * 1000 * 64
    assert fast == 2 * 1000 + 2 * 1000 * 64 + 2 * 64 * 64
    codec = TurboQuantConfig(bits=3, qjl=True).build(32)
    code = codec.encode(synthetic_kv(0, 8, 32, "key"))
    with pytest.raises(ValueError, match="two rotations"):
        rotated_values.sum_then_rotate(codec, code, jnp.ones((1, 8)))

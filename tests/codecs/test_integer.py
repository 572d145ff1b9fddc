import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.identity import IdentityConfig
from kakeya_jax.codecs.integer import Int4Config, Int8Config
from kakeya_jax.eval.numpy_codecs import identity as identity_oracle
from kakeya_jax.eval.numpy_codecs import integer as oracle
from kakeya_jax.testing import synthetic_kv
from kakeya_jax.typing import StreamName

encode = jax.jit(lambda codec, block: codec.encode(block))
recode = jax.jit(round_trip)


@pytest.mark.parametrize(
    "config",
    [Int8Config(), Int8Config(group_size=32), Int4Config(), Int4Config(affine=True), Int4Config(group_size=64)],
    ids=str,
)
@pytest.mark.parametrize("stream", ["key", "value"])
def test_codes_and_vectors_are_those_of_numpy(config: Int8Config | Int4Config, stream: StreamName) -> None:
    x = synthetic_kv(3, 96, 64, "key")
    codec = config.build(64, stream=stream)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config, stream)
    for ours, theirs in zip(jax.tree.leaves(code), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(codec.decode(code), oracle.decode(code, config, stream), rtol=1e-6, atol=1e-5)


def test_identity_is_bfloat16() -> None:
    x = synthetic_kv(3, 8, 64, "key")
    code = IdentityConfig().build(64).encode(x)
    expected = identity_oracle.encode(np.asarray(x), IdentityConfig())
    np.testing.assert_array_equal(code.values, expected.values)
    np.testing.assert_array_equal(
        IdentityConfig().build(64).decode(code), identity_oracle.decode(expected, IdentityConfig())
    )


def test_int8_error_is_at_most_half_a_step_of_its_own_token() -> None:
    x = synthetic_kv(0, 128, 128, "value")
    error = jnp.abs(recode(Int8Config().build(128), x) - x).max(axis=1)
    step = jnp.abs(x).max(axis=1) / 127
    assert float((error / step).max()) <= 0.5 + 127 * 2**-11


def test_int4_groups_are_independent() -> None:
    x = synthetic_kv(0, 4, 128, "value")
    codec = Int4Config().build(128)
    before, after = recode(codec, x), recode(codec, x.at[2, 33].set(100.0))
    changed = np.argwhere(np.asarray(before != after))
    assert set(map(tuple, changed)) <= {(2, j) for j in range(32, 64)}


def test_symmetric_int4_keeps_zero_and_affine_keeps_an_offset() -> None:
    zeros = jnp.zeros((1, 32)).at[0, 0].set(7.0)
    np.testing.assert_array_equal(recode(Int4Config().build(32), zeros), zeros)
    offset = 100 + jnp.linspace(0, 1, 32)[None]
    affine = recode(Int4Config(affine=True).build(32), offset)
    symmetric = recode(Int4Config().build(32), offset)
    assert float(jnp.abs(affine - offset).max()) < 0.1
    assert float(jnp.abs(symmetric - offset).max()) > 0.5


def test_group_size_must_divide_the_head_dimension() -> None:
    for config in (Int4Config(), Int8Config(group_size=32)):
        with pytest.raises(ValueError, match=f"{config.name}: group_size=32 must divide head_dim=80"):
            config.build(80)
    with pytest.raises(ValueError, match="int8: group_size=0 must be at least 1"):
        Int8Config(group_size=0)

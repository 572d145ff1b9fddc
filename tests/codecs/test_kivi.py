import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import bitpack
from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.kivi import KiviConfig
from kakeya_jax.eval.numpy_codecs import kivi as oracle
from kakeya_jax.testing import synthetic_kv
from kakeya_jax.typing import StreamName

encode = jax.jit(lambda codec, block: codec.encode(block))
recode = jax.jit(round_trip)


@pytest.mark.parametrize("stream", ["key", "value"])
@pytest.mark.parametrize("config", [KiviConfig(bits=2), KiviConfig(bits=4, group_size=64)], ids=str)
def test_codes_and_vectors_are_those_of_numpy(config: KiviConfig, stream: StreamName) -> None:
    x = synthetic_kv(3, 128, 64, stream)
    codec = config.build(64, stream=stream)
    code, expected = encode(codec, x), oracle.encode(np.asarray(x), config, stream)
    np.testing.assert_array_equal(code.scale, expected.scale)
    np.testing.assert_array_equal(code.minimum, expected.minimum)
    np.testing.assert_array_equal(codec.codes_of(code), bitpack.unpack(jnp.asarray(expected.codes), config.bits, 64))
    np.testing.assert_allclose(codec.decode(code), oracle.decode(expected, config, stream), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("stream", ["key", "value"])
def test_blocks_of_no_whole_words_take_no_more_bytes(bits: int, stream: StreamName) -> None:
    config = KiviConfig(bits=bits, group_size=1, block_size=40)
    codec, x = config.build(40, stream=stream), synthetic_kv(3, 40, 40, stream)
    code = encode(codec, x)
    assert code.codes.nbytes == 40 * 40 * bits // 8
    np.testing.assert_allclose(codec.decode(code), x, rtol=1e-3)


def test_key_groups_are_runs_of_tokens_in_one_channel() -> None:
    x = synthetic_kv(0, 128, 64, "key")
    codec = KiviConfig(bits=2).build(64, stream="key")
    code = encode(codec, x)
    assert code.scale.shape == code.minimum.shape == (4, 64)
    group = x[32:64, 5]
    assert float(code.minimum[1, 5]) == pytest.approx(float(group.min()), rel=1e-3)
    assert float(code.scale[1, 5]) == pytest.approx(float(group.max() - group.min()) / 3, rel=5e-3)
    changed = encode(codec, x.at[40, 5].set(1000.0))  # touches its group alone
    assert int((changed.scale != code.scale).sum()) == 1


def test_value_groups_are_runs_of_channels_in_one_token() -> None:
    x = synthetic_kv(0, 128, 64, "value")
    codec = KiviConfig(bits=2).build(64, stream="value")
    code = encode(codec, x)
    assert code.scale.shape == code.minimum.shape == (128, 2)
    changed = encode(codec, x.at[40, 5].set(1000.0))
    np.testing.assert_array_equal(jnp.argwhere(changed.scale != code.scale), [[40, 0]])


def test_channel_groups_keep_outlier_channels_from_the_rest() -> None:
    x = synthetic_kv(0, 128, 128, "key")

    def error(axis: str | None) -> float:
        y = recode(KiviConfig(bits=2, axis=axis).build(128, stream="key"), x)  # pyright: ignore[reportArgumentType]
        return float(jnp.sum((y - x) ** 2) / jnp.sum(x**2))

    assert error(None) == error("channel")
    assert error("token") > 4 * error("channel")


@pytest.mark.parametrize("bits", [2, 4])
def test_values_on_the_grid_are_exact(bits: int) -> None:
    steps = np.random.default_rng(0).integers(0, 2**bits, (128, 64))
    steps[::32], steps[1::32] = 0, 2**bits - 1  # every group reaches both ends
    steps[:, 0::32], steps[:, 1::32] = 0, 2**bits - 1
    x = jnp.asarray(0.25 * steps - 1, jnp.float32)
    for stream in ("key", "value"):
        np.testing.assert_array_equal(recode(KiviConfig(bits=bits).build(64, stream=stream), x), x)


def test_one_group_may_fill_the_block() -> None:
    config = KiviConfig(bits=2, block_size=64, group_size=64)
    assert encode(config.build(64), synthetic_kv(0, 64, 64, "key")).scale.shape == (1, 64)


def test_errors() -> None:
    with pytest.raises(ValueError, match="bits=3 must be 2 or 4"):
        KiviConfig(bits=3)
    with pytest.raises(ValueError, match="block_size=100 must be a multiple of group_size=32"):
        KiviConfig(block_size=100)
    with pytest.raises(ValueError, match="group_size=0"):
        KiviConfig(group_size=0)
    with pytest.raises(ValueError, match="axis='row'"):
        KiviConfig(axis="row")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="group_size=32 must divide head_dim=80"):
        KiviConfig().build(80, stream="value")
    KiviConfig().build(80, stream="key")  # groups of tokens: any dimension
    with pytest.raises(ValueError, match="group_size=32 must divide the block's 40 tokens"):
        KiviConfig().build(64).encode(jnp.zeros((40, 64)))

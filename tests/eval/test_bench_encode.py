import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import bitpack
from kakeya_jax.codecs.klt import Klt
from kakeya_jax.codecs.registry import codec_config, codec_names
from kakeya_jax.eval import numpy_codecs
from kakeya_jax.eval.bench_encode import bench_encode


def test_rows_hold_speeds_of_both_and_the_bits() -> None:
    seen = []
    rows = bench_encode(["int8", "turboquant"], vectors=256, head_dim=64, repeats=2, on_row=seen.append)
    assert seen == rows
    assert [row.codec for row in rows] == ["int8", *["turboquant"] * 4]
    assert [row.settings for row in rows] == ["", "bits=2", "", "bits=4", "bits=4, qjl=True"]
    assert [row.bits_per_value for row in rows] == [8.25, 2.25, 3.25, 4.25, 4.5]
    for row in rows:
        assert row.numpy_vectors_per_second is not None
        assert row.ratio is not None
        assert row.ratio == row.vectors_per_second / row.numpy_vectors_per_second > 0
        assert row.numpy_one_thread_vectors_per_second is not None
        assert row.ratio_one_thread == row.vectors_per_second / row.numpy_one_thread_vectors_per_second
        assert row.compile_seconds > 0


def test_every_codec_but_those_of_integer_arithmetic_has_a_numpy_baseline() -> None:
    without = set()
    for name in codec_names():
        config = codec_config(name)
        blocks = np.random.default_rng(0).standard_normal((1, config.block_size, 64)).astype(np.float32)
        if numpy_codecs.has_baseline(config):
            assert numpy_codecs.encode(blocks, config) is not None
        else:
            without.add(name)
    assert without == {"lattice", "klt-storage"}


def test_codecs_of_several_heads_are_timed_too() -> None:
    klt, _, _, trellis, storage = bench_encode(["klt", "klt-storage"], vectors=256, head_dim=64, repeats=1)
    assert klt.ratio is not None
    assert klt.ratio > 0
    assert klt.bits_per_value == pytest.approx(2 + 8 / 64 + 8 / 128 + 16 / (64 * 128))
    assert trellis.bits_per_value == klt.bits_per_value
    for without in (trellis, storage):
        assert without.numpy_vectors_per_second is None
        assert without.ratio is None
        assert without.ratio_one_thread is None


def test_the_numpy_baseline_of_klt_gives_its_codes() -> None:
    config = codec_config("klt", bits=2.0)
    blocks = np.random.default_rng(0).standard_normal((2, 128, 64)).astype(np.float32)
    codec = config.build(64, tables=config.neutral_tables(64))
    assert isinstance(codec, Klt)
    ours = jax.vmap(codec.encode)(jnp.asarray(blocks)[:, None])
    _, _, scale, *words = numpy_codecs.encode(blocks, config)
    assert np.mean(np.asarray(ours.scale)[:, 0] == scale) > 0.99
    for index, words_of_block in enumerate(ours.words):
        mine = codec.page_words(128).unpack(words_of_block)
        for codes, width, its in zip(mine, codec.layout.used_widths, words, strict=True):
            codes = codes.reshape(128, -1)
            expected = bitpack.unpack(jnp.asarray(its[index]), width, codes.shape[1])
            assert jnp.mean(codes == expected) > 0.99  # ties of rounding aside


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown codec 'zip'"):
        bench_encode(["zip"])
    with pytest.raises(ValueError, match="vectors=100 must be a multiple of int8's block_size=128"):
        bench_encode(["int8"], vectors=100)

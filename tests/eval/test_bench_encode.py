import numpy as np
import pytest

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
        assert row.ratio == row.vectors_per_second / row.numpy_vectors_per_second > 0
        assert row.compile_seconds > 0


def test_every_codec_has_a_numpy_baseline() -> None:
    for name in codec_names():
        config = codec_config(name)
        blocks = np.random.default_rng(0).standard_normal((1, config.block_size, 64)).astype(np.float32)
        assert numpy_codecs.encode(blocks, config) is not None


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown codec 'zip'"):
        bench_encode(["zip"])
    with pytest.raises(ValueError, match="vectors=100 must be a multiple of int8's block_size=128"):
        bench_encode(["int8"], vectors=100)

"""Decode steps dense, decoded first and packed: rows, bytes, and that all three read the same cache."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.eval.bench_decode import DENSE, HOW, DecodeSpeed, _Held, _is_length, _timed_loop, bench_decode
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.random_cache import random_cache
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import DEMO, find_folder
from kakeya_jax.recipe import Recipe

RECIPE = "both=int4(block_size=16),sinks=2,recent=8"


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(RECIPE, marks=pytest.mark.slow),
        "key@pre=int8(block_size=16),value=int4(block_size=16),sinks=2,recent=8",
    ],
)
def test_decoding_first_and_reading_codes_give_the_same_logits(tiny_model, tiny_tokens, recipe: str):
    model, params = tiny_model
    cache = CompressedCache.init(model.config, Recipe.parse(recipe), batch_size=2, max_length=96, dtype=jnp.float32)
    tokens = jnp.asarray(tiny_tokens[: 2 * 70]).reshape(2, 70)
    cache = model.apply({"params": params}, tokens[:, :-1], cache=cache).cache
    packed, decoded = (
        jax.jit(model.clone(implementation=HOW[how]).apply)({"params": params}, tokens[:, -1:], cache=cache).logits
        for how in ("packed", "decoded first")
    )
    np.testing.assert_allclose(packed, decoded, rtol=1e-4, atol=1e-4)
    with pytest.raises(NotImplementedError, match="decode steps of one token, not 2"):
        model.clone(implementation="dense_copy").apply({"params": params}, tokens[:, :2], cache=cache)


def test_rows(tiny_model, tiny_tokens):
    seen = []
    model, params = tiny_model
    rows = bench_decode(model, params, tiny_tokens, [RECIPE], context=160, repeats=2, on_row=seen.append)
    assert seen == rows
    assert [(row.recipe, row.how) for row in rows] == [
        (DENSE, DENSE),
        (RECIPE, "decoded first"),
        (RECIPE, "packed"),
    ]
    dense, decoded, packed = rows
    config = model.config
    assert dense.bytes_per_token == 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    assert dense.times_as_fast == 1.0
    assert packed.times_as_fast > 0
    assert packed.cache_nbytes == decoded.cache_nbytes < dense.cache_nbytes
    assert decoded.step_nbytes is not None
    assert packed.step_nbytes is not None
    assert all(row.quartiles[0] <= row.milliseconds <= row.quartiles[1] for row in rows)


@pytest.fixture(scope="module")
def long_rows(tiny_model, tiny_tokens) -> list[DecodeSpeed]:
    """More tokens than a tile of the reference, on a device that holds the parameters and 100 rows of a dense cache."""
    model, params = tiny_model
    memory = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + 100 * 2 * 2 * 4096 * _values(model.config)
    recipe = "both=int4(block_size=128),sinks=0,recent=1"
    text = np.tile(tiny_tokens, 3)
    return bench_decode(model, params, text, [recipe], context=4096, repeats=2, device_nbytes=memory)


def _values(config: ModelConfig) -> int:
    return config.num_layers * config.num_kv_heads * config.head_dim


def test_a_copy_of_a_long_cache_is_what_decoding_first_allocates(long_rows, tiny_config):
    """Only the copy grows with the tokens."""
    _, decoded, packed = long_rows
    copy = 2 * 4 * 4096 * tiny_config.num_kv_heads * tiny_config.head_dim
    assert decoded.step_nbytes is not None
    assert packed.step_nbytes is not None
    assert decoded.step_nbytes > copy > packed.step_nbytes


def test_the_largest_batch_is_what_fits_beside_the_parameters(long_rows):
    dense, _, packed = long_rows
    assert dense.largest_batch is not None
    assert packed.largest_batch is not None
    assert 10 < dense.largest_batch < 100 < packed.largest_batch


def test_random_weights_and_codes_of_a_config(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """What a model too large to have here is measured with."""
    raw = json.loads((find_folder(DEMO) / "config.json").read_text())
    config = tmp_path / "small.json"
    config.write_text(json.dumps({**raw, "num_hidden_layers": 1, "vocab_size": 128}))
    words = ["bench", "decode", "--config-json", str(config), "--context", "512", "--batch-size", "2", "--quiet"]
    bfloat16 = ["--dtype", "bfloat16", "--repeats", "2"]
    assert run([*words, *bfloat16, "--recipe", "turboquant-2", "--recipe", "kivi-4", "--no-decoded-first"]) == 0
    shown = capsys.readouterr().out
    assert "turboquant-2" in shown
    assert "decoded first" not in shown
    assert run([*words, "--recipe", "klt-2"]) == 2
    assert "needs a calibration, which random weights have none of" in capsys.readouterr().err
    assert run([*words, "--model", "elsewhere"]) == 2


def test_random_caches_are_full(tiny_model):
    model, params = tiny_model
    cache = CompressedCache.init(model.config, Recipe.parse(RECIPE), batch_size=2, max_length=96)
    structure = jax.tree.structure(cache)
    full = random_cache(cache, jax.random.key(0), length=90)
    assert full.length.tolist() == [90, 90]
    assert jax.tree.structure(full) == structure
    assert full.layers[0].key.blocks.codes.any()
    logits = model.apply({"params": params}, jnp.zeros((2, 1), jnp.int32), cache=full).logits
    assert np.isfinite(logits).all()


def test_wrong_sizes(tiny_model, tiny_tokens, capsys: pytest.CaptureFixture[str]):
    model, params = tiny_model
    with pytest.raises(ValueError, match="context=16 must be more than the 16 steps"):
        bench_decode(model, params, tiny_tokens, [], context=16)
    with pytest.raises(ValueError, match="text has 1600 tokens, fewer than context=4096"):
        bench_decode(model, params, tiny_tokens, [], context=4096)
    assert run(["bench", "decode", "--model", "somewhere"]) == 2
    assert "give --tokens FILE" in capsys.readouterr().err


def test_command(capsys: pytest.CaptureFixture[str]):
    words = ["bench", "decode", "--context", "192", "--recipe", "int8", "--repeats", "2", "--json", "--quiet"]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "demo"
    assert [row["how"] for row in found["rows"]] == list(HOW)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def exhausted(*_: object, **__: object) -> list[DecodeSpeed]:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 512.00MiB")

    monkeypatch.setattr("kakeya_jax.eval.decode_table.bench_decode", exhausted)
    assert run(["bench", "decode", "--context", "192", "--batch-size", "3", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert (
        "too little device memory for 3 rows of 192 tokens (for the dense cache); give a smaller --batch-size" in said
    )


@pytest.mark.slow
def test_loops_start_at_the_same_length(tiny_model, tiny_tokens):
    """And copy nothing: what a loop gives back is what the next one takes."""
    model, params = tiny_model
    cache = CompressedCache.init(model.config, Recipe.parse(RECIPE), batch_size=1, max_length=96)
    cache = model.apply({"params": params}, jnp.asarray(tiny_tokens[:60])[None], cache=cache).cache
    held = _Held(cache)
    run_loop, _, _ = _timed_loop(model, params, held, jnp.asarray(tiny_tokens[60:64])[None])
    assert held.cache.length.tolist() == [60]
    assert all(
        np.asarray(leaf).tolist() == [60] for path, leaf in jax.tree.leaves_with_path(held.cache) if _is_length(path)
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache.layers[0].key.blocks))
    assert run_loop() > 0
    assert held.cache.length.tolist() == [60]

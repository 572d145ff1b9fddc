"""``kakeya bench storage``: what its rows say, on neutral tables and a tiny model."""

import json

import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.eval import storage_table
from kakeya_jax.eval.bench_storage import StorageSpeed, bench_storage
from kakeya_jax.eval.cli import run

CONTEXT, PASSAGES, PAGE = 100, 2, 16
RECIPE = f"klt-storage(bits=2,block_size={PAGE}),sinks=2,recent=5"
SPEEDS = "quantize", "entropy_encode", "save", "load", "entropy_decode", "reconstruct"


class NeutralCalibration:
    """Gives the tables of a codec that was fitted to nothing."""

    def tables_for(self, recipe):
        codec = recipe.plan(2)[0].key.codec
        assert isinstance(codec, KltStorageConfig)
        return {(layer, "both"): codec.neutral_tables(32, num_kv_heads=2) for layer in range(2)}


def measure(tiny_model, tokens, recipes, **options) -> list[StorageSpeed]:
    options = {"context": CONTEXT, "passages": PASSAGES, "repeats": 1} | options
    return bench_storage(*tiny_model, tokens, recipes, calibration=NeutralCalibration(), **options)  # pyright: ignore


def test_rows_hold_the_size_and_the_speed_of_every_step(tiny_model, tiny_tokens, monkeypatch) -> None:
    caches, saved = [], storage_speed_saves(monkeypatch)
    rows = measure(tiny_model, tiny_tokens, [RECIPE, RECIPE.replace("bits=2", "bits=3")], on_row=caches.append)
    assert rows == caches
    coarse, fine = rows
    coded_tokens = (CONTEXT - 2 - 5) // PAGE * PAGE * PASSAGES
    assert coarse.megabytes == coded_tokens * 2 * (2 * 2 * 32) * 2 / 1e6
    assert 0 < coarse.bits_per_value < fine.bits_per_value
    assert all(getattr(row, name) > 0 for row in rows for name in SPEEDS)
    for cache in saved:  # what is saved is full of the model's own keys and values
        np.testing.assert_array_equal(cache.length, [CONTEXT] * PASSAGES)
        symbols = [np.asarray(stream.blocks.symbols) for layer in cache.layers for _, stream in layer.streams()]
        assert all((each != 0).any(axis=(1, 3, 4)).all() for each in symbols)


def storage_speed_saves(monkeypatch) -> list[CompressedCache]:
    from kakeya_jax.eval import bench_storage as module

    saved, save = [], module.save_session
    monkeypatch.setattr(module, "save_session", lambda cache, path: (saved.append(cache), save(cache, path))[1])
    return saved


def test_wrong_input_is_told_before_anything_is_run(tiny_tokens, tiny_model) -> None:
    for recipe, options, message in (
        ("int8", {}, "recipe 'int8' is not for session files"),
        (RECIPE, {"context": 22}, "codes its first page at 23 tokens"),
        (RECIPE, {"passages": 17}, "passages=17 must be between 1 and 16"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(tiny_model, tiny_tokens, [recipe], **options)
    with pytest.raises(ValueError, match="belong to another tokenizer"):
        measure(tiny_model, tiny_tokens + 101, [RECIPE])


def test_the_command(monkeypatch, capsys) -> None:
    row = StorageSpeed(recipe="klt-storage-1", bits_per_value=1.01, megabytes=62.9, **dict.fromkeys(SPEEDS, 123.0))
    asked = []
    monkeypatch.setattr(storage_table, "measure", lambda request, quiet: (asked.append(request), [row])[1])
    arguments = ["bench", "storage", "--recipe", "klt-storage-1", "--context", "512", "--passages", "3"]
    assert run([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rows"] == [{"recipe": "klt-storage-1", "bits_per_value": 1.01, "megabytes": 62.9}
                             | dict.fromkeys(SPEEDS, 123.0)]  # fmt: skip
    assert (shown["context"], shown["passages"], shown["model"]) == (512, 3, "demo")
    assert asked[0].recipes == ("klt-storage-1",)
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "bfloat16 K and V" in shown
    assert "123" in shown


def test_the_command_refuses_what_cannot_be_measured(capsys) -> None:
    for arguments, message in (
        (["--repeats", "0"], "Invalid value for '--repeats'"),
        (["--model", "elsewhere"], "klt-storage needs calibrated tables; give --calibration FILE"),
    ):
        assert run(["bench", "storage", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_recipes_of_session_files() -> None:
    assert storage_table.storage_recipes() == tuple(f"klt-storage-{bits}" for bits in ("0.5", "1", "2", "3"))

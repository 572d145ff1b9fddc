"""Bytes from a bare config.json: `kakeya explain --config-json`, and the committed table."""

import json
import math
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import pytest
from script_modules import load_script

from kakeya_jax.cache import CacheShape, CompressedCache, cache_nbytes
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.config_shape import config_shape, read_config_shape
from kakeya_jax.eval.run_explain import explain_config
from kakeya_jax.models.locate import ModelError
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe

CONFIGS = Path(__file__).parent / "configs"
ROOT = CONFIGS.parent.parent.parent

pytestmark = pytest.mark.usefixtures("keep_environment")


@pytest.fixture(scope="module")
def flagship() -> ModuleType:
    return load_script("make_flagship")


@pytest.mark.parametrize(
    ("name", "shape", "dense_bytes_per_token"),
    [
        ("llama-3.1-8b", (32, 8, 128), 131072),
        ("qwen2.5-7b", (28, 4, 128), 57344),
        ("qwen3-8b", (36, 8, 128), 147456),
        ("deepseek-r1-distill-qwen-1.5b", (28, 2, 128), 28672),
        ("qwen3-30b-a3b", (48, 4, 128), 98304),
    ],
)
def test_shapes_of_published_configs(name: str, shape: tuple[int, ...], dense_bytes_per_token: int):
    found = read_config_shape(CONFIGS / f"{name}.json")
    assert found.shape == CacheShape(num_layers=shape[0], num_kv_heads=shape[1], head_dim=shape[2])
    assert any("bytes only" in note for note in found.notes) == (name == "qwen3-30b-a3b")
    report = explain_config(found, Recipe.named("int8"), (1000,), name=name).reports[0]
    assert report.dense_nbytes == 1000 * dense_bytes_per_token


def test_bytes_at_long_context_are_those_of_a_formula():
    """turboquant-4: 64 bytes of codes and a 2-byte scale for each vector of 128; sinks and tail as bfloat16."""
    found = read_config_shape(CONFIGS / "qwen2.5-7b.json")
    report = explain_config(found, Recipe.named("turboquant-4"), (131072,), name="x", batch_size=3).reports[0]
    pages = (131072 - 4 - 128) // 128
    vectors = 2 * 28 * 4
    assert report.nbytes == 3 * vectors * (pages * 128 * (64 + 2) + (4 + 255) * 256)


def test_tables_by_shape_have_the_bytes_of_arrays(tiny_config):
    recipe = Recipe.parse("klt-2,sinks=2,recent=8")
    shape = CacheShape.of(tiny_config)
    config = {
        "model_type": "mixtral",
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": shape.num_kv_heads,
        "hidden_size": 4 * shape.head_dim,
    }
    found = config_shape(config)
    assert found.shape == shape
    explanation = explain_config(found, recipe, (600,), name="x", batch_size=2)
    tables = neutral_tables(shape, recipe)
    cache = CompressedCache.init(shape, recipe, batch_size=2, max_length=600, dtype=jnp.bfloat16, tables=tables)
    report = explanation.reports[0]
    lengths = 2 * shape.num_layers * 2 * 4
    seeded = sum(stream.seeded for stream in report.streams)
    assert report.nbytes + report.table_nbytes + seeded + lengths == cache_nbytes(cache)
    assert "not calibrated" in " ".join(explanation.notes)


@pytest.mark.parametrize("bits", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_stand_in_widths_spend_the_whole_budget(bits: float):
    found = read_config_shape(CONFIGS / "llama-3.1-8b.json")
    small = CacheShape(num_layers=2, num_kv_heads=found.shape.num_kv_heads, head_dim=found.shape.head_dim)
    recipe = Recipe.named(f"klt-{bits:g}")
    report = explain_config(config_shape_of(small), recipe, (1024,), name="x").reports[0]
    assert report.payload_bits_per_value == bits


def config_shape_of(shape: CacheShape):
    from kakeya_jax.eval.config_shape import ConfigShape

    return ConfigShape(shape=shape, model_type="llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, "one latent of 512 numbers and a rotary key of 64 a token"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "1 of 2 layers are sliding_attention"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window=4096 is not covered"),
        ({"full_attention_interval": 4}, "some layers have no attention"),
        ({"num_kv_shared_layers": 10}, "layers that share keys and values"),
        ({"text_config": {"hidden_size": 1}}, "give the text model's"),
        ({"model_type": "falcon", "num_key_value_heads": None}, "num_key_value_heads=None must be a whole number"),
        ({"model_type": "gemma", "head_dim": None}, "head_dim=None must be a whole number"),
        ({"model_type": "mixtral", "num_key_value_heads": 5}, "num_key_value_heads=5 must divide"),
        ({"model_type": "mixtral", "num_hidden_layers": "many"}, "num_hidden_layers='many' must be"),
        ({"model_type": "mixtral", "hidden_size": 4097}, "is no multiple of"),
    ],
)
def test_configs_that_are_not_covered(change: dict, message: str):
    raw = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
    with pytest.raises(ModelError) as caught:
        config_shape(raw | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sliding_windows_that_are_not_used_change_nothing():
    raw = json.loads((CONFIGS / "deepseek-r1-distill-qwen-1.5b.json").read_text())
    assert raw["sliding_window"] == 4096
    assert config_shape(raw).shape.num_layers == 28
    with pytest.raises(ModelError, match="not covered"):
        config_shape(raw | {"use_sliding_window": True})


def test_command(capsys, fails, tmp_path):
    config = CONFIGS / "llama-3.1-8b.json"
    contexts = ["--context", "4096", "--context", "131072"]
    assert run(["explain", "klt-2", "--config-json", str(config), *contexts, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [report["context"] for report in document["reports"]] == [4096, 131072]
    assert document["reports"][1]["compression_ratio"] > document["reports"][0]["compression_ratio"]
    assert any("at most 2 payload bits" in note for note in document["notes"])
    assert run(["explain", "int4", "--config-json", str(config), *contexts]) == 0
    shown = capsys.readouterr().out
    assert "131,072" in shown
    assert "16.000" in shown
    assert run(["explain", "int4", "--config-json", str(CONFIGS / "qwen3-30b-a3b.json")]) == 0
    assert "the decoder here does not run this model" in " ".join(capsys.readouterr().out.split())
    for more in ([], ["--context", "4096"]):
        assert run(["explain", "int4", "--config-json", str(config), "--context", "262144", *more]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "262,144 tokens: more than the 131,072 the model is meant for" in said
    assert run(["explain", "int4", "--model", "demo", "--context", "8192"]) == 0
    assert "more than the 4,096 the model is meant for" in " ".join(capsys.readouterr().out.split())
    said = fails("explain", "int4", "--config-json", CONFIGS / "deepseek-v3.json")
    assert "multi-head latent attention (kv_lora_rank=512) is not covered" in said
    assert "give either --model MODEL or --config-json FILE" in fails("explain", "int4")
    assert "given twice" in fails("explain", "int4", "--config-json", config, "--context", 9, "--context", 9)
    assert "does not exist" in fails("explain", "int4", "--config-json", tmp_path / "none.json")
    assert "is a folder" in fails("explain", "int4", "--config-json", tmp_path)
    (tmp_path / "list.json").write_text("[]")
    assert "has no model_type" in fails("explain", "int4", "--config-json", tmp_path / "list.json")
    (tmp_path / "broken.json").write_text("{")
    assert "is not readable JSON" in fails("explain", "int4", "--config-json", tmp_path / "broken.json")


def test_committed_table_is_what_the_script_makes(flagship: ModuleType):
    data = json.loads(flagship.DATA.read_text())
    assert flagship.PAGE.read_text() == flagship.page(data)
    assert [each["model"] for each in data["models"]] == list(flagship.MODELS.values())
    for stem, each in zip(flagship.MODELS, data["models"], strict=True):
        assert {row["recipe"] for row in each["rows"]} == set(Recipe.names())
        assert each["num_layers"] == read_config_shape(CONFIGS / f"{stem}.json").shape.num_layers
    rows = {row["recipe"]: row for row in data["models"][1]["rows"]}
    for recipe in ("int8", "kivi-2", "turboquant-3", "klt-2"):
        assert rows[recipe] == flagship.count_recipe("qwen2.5-7b", recipe)
        assert math.isfinite(rows[recipe]["all_in_bits"])

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from golden_models import NAMES, expected, folder_of, run
from safetensors.numpy import load_file, save_file

from kakeya_jax import models
from kakeya_jax.models.checkpoint import INDEX_FILE, SINGLE_FILE, tensors_of
from kakeya_jax.models.locate import find_folder


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden model that a test may break."""
    shutil.copytree(folder_of("llama-tied"), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE)


def test_parameters_are_named_readably_and_complete():
    model, params = models.load(folder_of("qwen3"))
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    assert params["layers_0"]["attention"]["q_proj"]["kernel"].shape == (32, 64)
    assert params["layers_1"]["attention"]["k_norm"]["scale"].shape == (16,)
    assert params["layers_1"]["mlp"]["down_proj"]["kernel"].shape == (48, 32)
    assert params["embed_tokens"]["embedding"].shape == (128, 32)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_export_gives_the_same_file_as_transformers(name, tmp_path):
    model, params = models.load(folder_of(name), dtype="bfloat16")
    models.save(tmp_path, model.config, params)
    assert (tmp_path / SINGLE_FILE).read_bytes() == (folder_of(name) / SINGLE_FILE).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_sharded_export_is_exact_and_loads(tmp_path):
    model, params = models.load(folder_of("llama-bias"), dtype="float32", param_dtype="bfloat16")
    models.save(tmp_path, model.config, params, shard_bytes=10_000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    original = load_file(folder_of("llama-bias") / SINGLE_FILE)
    shards = {file: load_file(tmp_path / file) for file in files}
    assert set(index["weight_map"]) == set(original)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in original.values())
    for name, file in index["weight_map"].items():
        assert shards[file][name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(shards[file][name].view(np.uint16), original[name].view(np.uint16))
    reloaded, again = models.load(tmp_path, param_dtype="bfloat16")
    assert reloaded == model
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert all(array.nbytes <= 10_000 for shard in shards.values() for array in shard.values())
    # Saving over it as one file leaves no shards behind.
    models.save(tmp_path, model.config, params)
    assert [path.name for path in tmp_path.glob("model*")] == [SINGLE_FILE]


def test_float32_export_keeps_every_bit(tmp_path):
    model, _ = models.load(folder_of("llama"))
    params = model.init(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))["params"]
    models.save(tmp_path, model.config, params)
    jax.tree.map(np.testing.assert_array_equal, params, models.load(tmp_path)[1])


def test_dtypes():
    model, params = models.load(folder_of("llama"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    tokens, logits = expected("llama")
    out = run(model, params, tokens).logits
    assert out.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((out - logits) ** 2)) / np.sqrt(np.mean(logits**2)))
    assert 1e-4 < error < 0.03, error
    _, params = models.load(folder_of("llama"), dtype="bfloat16", param_dtype="float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_missing_unexpected_and_misshaped_tensors_are_one_error(folder):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.norm.weight"] = np.zeros(31, np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48, 32), np.int8)

    edit(folder, change)
    with pytest.raises(models.ModelError) as caught:
        models.load(folder)
    message = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected: model.layers.2.mlp.up_proj.weight" in message
    assert "model.norm.weight is [31] instead of [32]" in message
    assert "model.layers.0.mlp.up_proj.weight is I8" in message
    assert str(folder) in message
    assert "\n" not in message


def test_transposed_weights_are_an_error_even_where_the_count_fits(folder):
    edit(folder, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.zeros((32, 48), np.float32)}))
    with pytest.raises(models.ModelError, match=r"up_proj\.weight is \[32, 48\] instead of \[48, 32\]"):
        models.load(folder)


def test_rotary_buffers_and_an_equal_tied_head_are_ignored(folder):
    _, before = models.load(folder)
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}))
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    jax.tree.map(np.testing.assert_array_equal, models.load(folder)[1], before)
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
    with pytest.raises(models.ModelError, match=r"ties the embeddings, but lm_head\.weight"):
        models.load(folder)


def test_an_untied_head_must_be_there(folder):
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(models.ModelError, match=r"missing: lm_head\.weight"):
        models.load(folder)


def test_files_that_are_missing_or_broken_are_named(folder, tmp_path):
    weights = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(weights[:1000])
    with pytest.raises(models.ModelError, match=r"model\.safetensors is not a readable safetensors file"):
        models.load(folder)
    (folder / SINGLE_FILE).unlink()
    with pytest.raises(models.ModelError, match=r"has neither model\.safetensors nor"):
        models.load(folder)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(models.ModelError, match=r"lacks model-00001-of-00002\.safetensors, which"):
        models.load(folder)
    (folder / INDEX_FILE).write_text("[]")
    with pytest.raises(models.ModelError, match="is not a safetensors index"):
        models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(models.ModelError, match=r"has no config\.json"):
        models.load(folder)
    with pytest.raises(models.ModelError, match="there is no folder"):
        models.load(tmp_path / "nowhere")
    with pytest.raises(models.ModelError, match="is a file"):
        find_folder(__file__)


def test_offline_asks_only_the_cache(tmp_path, monkeypatch):
    def snapshot(repo_id, **options):
        from huggingface_hub.errors import LocalEntryNotFoundError

        assert options["local_files_only"] is True
        assert options["revision"] == "main"
        if repo_id == "owner/absent":
            raise LocalEntryNotFoundError("not cached")
        return str(folder_of("llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model, _ = models.load("owner/there", offline=True, revision="main")
    assert model.config.model_type == "llama"
    with pytest.raises(models.ModelError, match="owner/absent is no local folder, and is not in the Hugging Face"):
        models.load("owner/absent", offline=True, revision="main")


def test_hub_errors_are_one_line(monkeypatch):
    def snapshot(repo_id, **options):
        raise OSError("first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(models.ModelError, match=r"fetching it failed: first line$"):
        models.load("owner/name")


def test_saving_parameters_of_another_model_is_refused(tmp_path):
    model, _ = models.load(folder_of("llama"))
    _, params = models.load(folder_of("llama-tied"))
    with pytest.raises(models.ModelError, match="missing: lm_head/kernel"):
        models.save(tmp_path, model.config, params)
    assert not list(tmp_path.iterdir())


def test_tensor_paths_are_unique():
    for name in NAMES:
        tensors = tensors_of(models.ModelConfig.from_folder(folder_of(name)))
        assert len({tensor.path for tensor in tensors.values()}) == len(tensors)

import dataclasses
import json

import pytest
from golden_models import NAMES, folder_of

from kakeya_jax.models import ModelConfig, ModelError
from kakeya_jax.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling

SMALL = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_of_written_configs(name):
    config = ModelConfig.from_folder(folder_of(name))
    written = json.loads(json.dumps(config.to_huggingface()))
    assert ModelConfig.from_huggingface(written) == config
    assert hash(ModelConfig.from_huggingface(written)) == hash(config)


def test_transformers_4_and_5_keys_mean_the_same():
    old = SMALL | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    older = SMALL | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    new = SMALL | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    expected = Rope(head_dim=8, theta=5e5, scaling=Llama3Scaling(**LLAMA3))
    for raw in (old, older, new):
        assert ModelConfig.from_huggingface(raw).rope == expected


def test_rope_defaults():
    assert ModelConfig.from_huggingface(SMALL).rope == Rope(head_dim=8, theta=10000.0)
    assert ModelConfig.from_huggingface(SMALL | {"rope_scaling": None, "rope_theta": 1e6}).rope.theta == 1e6
    linear = ModelConfig.from_huggingface(SMALL | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert linear.rope.scaling == LinearScaling(factor=2)


def test_yarn_keys():
    raw = SMALL | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}
    assert ModelConfig.from_huggingface(raw).rope.scaling == YarnScaling(
        factor=4.0, original_max_position_embeddings=1024
    )
    # Without a factor it is the ratio of the contexts; without an original context that is the present one.
    raw = SMALL | {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 512}}
    scaling = ModelConfig.from_huggingface(raw).rope.scaling
    assert scaling == YarnScaling(factor=8.0, original_max_position_embeddings=512)
    scaling = ModelConfig.from_huggingface(SMALL | {"rope_scaling": {"type": "yarn", "factor": 2.0}}).rope.scaling
    assert scaling == YarnScaling(factor=2.0, original_max_position_embeddings=4096)


def test_families_differ_in_biases_and_norms():
    llama = ModelConfig.from_huggingface(SMALL | {"attention_bias": True, "mlp_bias": True})
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias, llama.qk_norm) == (True, True, True, False)
    qwen2 = ModelConfig.from_huggingface(SMALL | {"model_type": "qwen2"})
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias, qwen2.qk_norm) == (True, False, False, False)
    qwen3 = ModelConfig.from_huggingface(SMALL | {"model_type": "qwen3"})
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.mlp_bias, qwen3.qk_norm) == (False, False, False, True)
    assert (llama.head_dim, qwen2.head_dim, qwen3.head_dim) == (8, 8, 128)


def test_end_tokens_of_the_generation_config_are_added(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"eos_token_id": 7}))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (7, 9)


def test_full_attention_in_every_layer_is_no_sliding_window():
    # Qwen2 configs carry these values although their windows are off.
    off = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2}
    ModelConfig.from_huggingface(SMALL | off)
    ModelConfig.from_huggingface(SMALL | off | {"use_sliding_window": True, "max_window_layers": 3})
    ModelConfig.from_huggingface(SMALL | {"model_type": "qwen3", "layer_types": ["full_attention"] * 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type='mistral' is not supported; supported: llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type=None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic' is not supported; supported: d",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ between layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"type": "linear"}}, "linear rope needs factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8}},
            "llama3 rope needs low_freq_factor, high_freq_factor",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "sliding-window layers are not supported",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention",
        ),
        ({"num_hidden_layers": None}, "no whole number for num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=8"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"head_dim": "x"}, "head_dim='x' must be a whole number of at least 1"),
        ({"head_dim": 0}, "head_dim=0 must be a whole number of at least 1"),
        ({"head_dim": 64.0}, r"head_dim=64\.0 must be a whole number"),
        ({"hidden_size": True}, "no whole number for hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be a whole number of at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 must be a whole number of at least 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings=-1 must be a whole number of at least 1"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None must be a number of at least 0"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps='x' must be a number of at least 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps=-1 must be a number of at least 0"),
        ({"rope_scaling": "x"}, "rope_scaling='x' must be a JSON object"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\] must be a JSON object"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor='x' must be a number"),
        ({"rope_theta": "x"}, "rope_theta='x' must be a number"),
    ],
)
def test_rejects_in_one_line_that_names_the_file(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_huggingface(SMALL | change)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL | change))
    with pytest.raises(ModelError, match=message) as caught:
        ModelConfig.from_folder(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rejects_what_is_no_config_file(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        ModelConfig.from_folder(tmp_path)


def test_rejects_inconsistent_configs():
    config = ModelConfig.from_huggingface(SMALL)
    with pytest.raises(ModelError, match=r"rope\.head_dim=16 must equal head_dim=8"):
        dataclasses.replace(config, rope=Rope(head_dim=16))
    with pytest.raises(ModelError, match="mlp_bias=True is a variant of llama"):
        dataclasses.replace(config, model_type="qwen3", mlp_bias=True)
    with pytest.raises(ModelError, match="num_layers=0"):
        dataclasses.replace(config, num_layers=0)

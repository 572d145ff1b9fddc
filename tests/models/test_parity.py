"""Against transformers in torch, live: `pip install "kakeya-jax[parity]"`, then `pytest -m parity
tests/models`.

`HOUSE=<folder>` adds every model folder in it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_models import run
from make_golden import CASES, logits_of, make_model

from kakeya_jax import models

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'kakeya-jax[parity]'")

pytestmark = [
    pytest.mark.parity,
    # What torch and transformers warn about is theirs.
    pytest.mark.filterwarnings("default"),
]

TOLERANCE = 1e-3
HOUSE = sorted(path.parent for path in Path(os.environ["HOUSE"]).glob("*/config.json")) if "HOUSE" in os.environ else []


def difference(model, params, torch_model, tokens) -> float:
    ours = run(model, params, tokens).logits
    return float(np.abs(ours - logits_of(torch_model, tokens)).max())


@pytest.mark.parametrize("name", CASES)
def test_random_models(name, tmp_path, record_property):
    torch_model = make_model(name, seed=7)
    torch_model.save_pretrained(tmp_path)
    model, params = models.load(tmp_path, precision="highest")
    tokens = np.random.default_rng(7).integers(0, 128, (2, 64), dtype=np.int32)
    largest = difference(model, params, torch_model, tokens)
    record_property("max_logit_difference", largest)
    print(f"{name}: max logit difference {largest:.2e}")
    assert largest <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_rope_tables(name):
    torch_model = make_model(name)
    theirs = torch_model.model.rotary_emb
    rope = models.ModelConfig.from_huggingface(torch_model.config.to_dict()).rope
    np.testing.assert_allclose(rope.frequencies, theirs.inv_freq.numpy(), rtol=3e-7)
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


REAL_ROPES = {
    "llama-3.2": {
        "head_dim": 64,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen-yarn": {
        "head_dim": 128,
        "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "smollm2": {"head_dim": 64, "rope_theta": 100000.0},
    "head-dim-80": {
        "head_dim": 80,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    },
}


@pytest.mark.parametrize("name", REAL_ROPES)
def test_rope_tables_of_real_models(name):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    options: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in REAL_ROPES[name].items()
    }
    config = LlamaConfig(max_position_embeddings=131072, **options)
    theirs = LlamaRotaryEmbedding(config)
    raw = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 131072}
    raw |= {"hidden_size": 64, "intermediate_size": 8, "num_attention_heads": 1, **REAL_ROPES[name]}
    rope = models.ModelConfig.from_huggingface(raw).rope
    expected = theirs.inv_freq.numpy()
    ulps = np.abs(rope.frequencies - expected) / np.spacing(expected)
    print(f"{name}: {np.count_nonzero(ulps)} of {ulps.size} frequencies differ, by at most {ulps.max():.0f} ulp")
    assert ulps.max() <= 2
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_transformers_reads_what_save_writes(tmp_path):
    from transformers import AutoModelForCausalLM

    for name in ("llama-bias", "llama-yarn-mscale", "qwen2-yarn", "qwen3"):
        torch_model = make_model(name)
        torch_model.save_pretrained(tmp_path / "theirs")
        model, params = models.load(tmp_path / "theirs", precision="highest")
        models.save(tmp_path / name, model.config, params, shard_bytes=20_000)
        again = AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = np.random.default_rng(7).integers(0, 128, (1, 40), dtype=np.int32)
        np.testing.assert_array_equal(logits_of(again, tokens), logits_of(torch_model, tokens))


@pytest.mark.parametrize("folder", HOUSE, ids=lambda path: path.name)
def test_house_models(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    torch_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model, params = models.load(folder, precision="highest")
    tokens = np.random.default_rng(7).integers(0, model.config.vocab_size, (1, 512), dtype=np.int32)
    largest = difference(model, params, torch_model, tokens)
    print(f"{folder.name}: max logit difference {largest:.2e}")
    assert largest <= TOLERANCE


@pytest.mark.parametrize("folder", HOUSE, ids=lambda path: path.name)
def test_house_models_export_byte_exactly(folder, tmp_path):
    from safetensors.numpy import load_file

    model, params = models.load(folder, dtype="bfloat16")
    models.save(tmp_path, model.config, params, shard_bytes=20_000_000)
    original = {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}
    exported = {
        name: array for file in sorted(tmp_path.glob("*.safetensors")) for name, array in load_file(file).items()
    }
    assert set(original) == set(exported)
    for name, array in original.items():
        assert array.dtype == exported[name].dtype
        assert array.tobytes() == exported[name].tobytes(), name

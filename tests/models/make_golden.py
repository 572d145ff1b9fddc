"""Makes the golden models of this folder with transformers in torch: `python tests/models/make_golden.py`.

Each is a tiny decoder with random weights (rounded to bfloat16), stored as transformers stores it, with the
float32 logits that transformers computes from those weights. Norms, biases and projections are all far from
their usual initial values, so that a wrong one shows.
"""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", **ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", **ORIGINAL, "beta_fast": 2.0, "beta_slow": 0.5}
MSCALE = {"mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}

CASES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "llama-llama3": ("llama", {"head_dim": 16, "rope_parameters": LLAMA3 | {"rope_theta": 500.0}}),
    "llama-yarn": ("llama", {"head_dim": 16, "rope_parameters": YARN}),
    "llama-yarn-mscale": ("llama", {"head_dim": 16, "rope_parameters": YARN | MSCALE}),
    "qwen2": ("qwen2", {"rms_norm_eps": 1e-5}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN | {"attention_factor": 1.3, "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}
"""Name -> model type and what its transformers config has beside ``SIZES``."""


def make_model(name: str, seed: int = 0):
    """The random torch model of a case, in float32."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = CASES[name]
    options = {key: dict(value) if isinstance(value, dict) else value for key, value in options.items()}
    config = AutoConfig.for_model(model_type, **SIZES, **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter.shape[-1] if parameter.ndim == 2 else 1
            value = 1 + 0.3 * noise if "norm" in parameter_name else 1.5 * noise * fan_in**-0.5
            parameter.copy_(value.to(torch.bfloat16))
    return model


def logits_of(model, tokens):
    """Float32 logits ``[B, T, V]`` of numpy ``tokens``, as numpy."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return model(torch.as_tensor(tokens, dtype=torch.long), use_cache=False).logits.float().numpy()


def main() -> None:
    """Writes every case anew."""
    import numpy as np
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import save_file

    for name in CASES:
        model = make_model(name)
        tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 40), dtype=np.int32)
        logits = logits_of(model, tokens)
        folder = GOLDEN / name
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file({"tokens": tokens, "logits": logits}, folder / "expected.safetensors")
        print(f"{name}: logits up to {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main()

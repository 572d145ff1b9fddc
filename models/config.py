"""What a decoder is made of, read from and written to a Hugging Face ``config.json``."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kakeya_jax.models.locate import ModelError
from kakeya_jax.rope import LinearScaling, Llama3Scaling, Rope, RopeScaling, YarnScaling

MODEL_TYPES = ("llama", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
)

_MAX_POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}
"""``max_position_embeddings`` where a config file leaves it out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama, Qwen2 or Qwen3 decoder; hashable.

    Attributes:
        model_type: ``"llama"``; ``"qwen2"`` has biases on its query, key and value projections; ``"qwen3"``
            normalises each head of query and key.
        vocab_size: rows of the embedding table.
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU layer.
        num_layers: decoder layers.
        num_heads: query heads; a multiple of ``num_kv_heads``.
        num_kv_heads: key/value heads.
        head_dim: dimension of each head; need not be ``hidden_size / num_heads``.
        rope: rotary embedding of ``head_dim`` channels.
        max_position_embeddings: longest context in tokens the model is meant for.
        rms_norm_eps: added to the mean square in every RMSNorm.
        tie_word_embeddings: the embedding table is also the output projection.
        attention_bias: Llama and Qwen3 with biases on all four attention projections.
        mlp_bias: Llama with biases in its SwiGLU layer.
        bos_token_id: first token of a text, if the model has one.
        eos_token_ids: tokens that end a text.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ModelError(f"model_type={self.model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in (*sizes, "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"{name}={value!r} must be a whole number of at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.rope.head_dim != self.head_dim:
            raise ModelError(f"rope.head_dim={self.rope.head_dim} must equal head_dim={self.head_dim}")
        if self.mlp_bias and self.model_type != "llama":
            raise ModelError(f"mlp_bias=True is a variant of llama, not of {self.model_type}")
        if self.attention_bias and self.model_type == "qwen2":
            raise ModelError("attention_bias=True is a variant of llama and qwen3; qwen2 always has q, k and v biases")

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def output_bias(self) -> bool:
        """Whether the attention output projection has a bias."""
        return self.attention_bias

    @property
    def qk_norm(self) -> bool:
        """Whether each head of query and key goes through an RMSNorm."""
        return self.model_type == "qwen3"

    @classmethod
    def from_huggingface(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """The config of a parsed ``config.json``, as transformers 4 or 5 writes it.

        Raises:
            ModelError: an architecture, activation, rope type, sliding window or quantisation that is not
                supported, a missing key, or a value of the wrong kind.
        """
        model_type = raw.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ModelError(f"model_type={model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
        _reject_unsupported(raw)
        required = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
        missing = [key for key in required if not _is_whole(raw.get(key))]
        if missing:
            raise ModelError(f"config.json has no whole number for {', '.join(missing)}")
        heads = _size(raw, "num_attention_heads", 0)
        # Qwen3 has had its own default since its first release; the others derive it.
        head_dim = _size(raw, "head_dim", 128 if model_type == "qwen3" else raw["hidden_size"] // heads)
        max_positions = _size(raw, "max_position_embeddings", _MAX_POSITIONS[model_type])
        return cls(
            model_type=model_type,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=_size(raw, "num_key_value_heads", heads),
            head_dim=head_dim,
            rope=_read_rope(raw, head_dim, max_positions),
            max_position_embeddings=max_positions,
            rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=model_type != "qwen2" and bool(raw.get("attention_bias", False)),
            mlp_bias=model_type == "llama" and bool(raw.get("mlp_bias", False)),
            bos_token_id=raw.get("bos_token_id"),
            eos_token_ids=_token_ids(raw.get("eos_token_id")),
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """Reads ``config.json``, and from ``generation_config.json``, where there is one, further end-of-text
        tokens.

        Raises:
            ModelError: no such file, not JSON, or what ``from_huggingface`` refuses; the message names the
                file.
        """
        config = cls.from_file(Path(folder) / "config.json")
        generation_path = Path(folder) / "generation_config.json"
        if not generation_path.is_file():
            return config
        more = _token_ids(_read_json(generation_path).get("eos_token_id"))
        return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))

    @classmethod
    def from_file(cls, path: str | Path) -> "ModelConfig":
        """Reads a ``config.json``, whatever its name.

        Raises:
            ModelError: as ``from_folder``.
        """
        raw = _read_json(Path(path))
        try:
            return cls.from_huggingface(raw)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None

    def to_huggingface(self) -> dict[str, Any]:
        """A ``config.json`` that transformers 4 and 5 both read; ``from_huggingface`` inverts it."""
        raw: dict[str, Any] = {
            "architectures": [self.model_type.capitalize() + "ForCausalLM"],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids) or None,
            "rope_theta": self.rope.theta,
            "rope_parameters": {"rope_theta": self.rope.theta, **_write_scaling(self.rope.scaling)},
        }
        if self.rope.scaling is not None:
            raw["rope_scaling"] = _write_scaling(self.rope.scaling)
        if self.model_type == "llama":
            raw["mlp_bias"] = self.mlp_bias
        if self.model_type == "qwen2":
            raw["use_sliding_window"] = False
        else:
            raw["attention_bias"] = self.attention_bias
        return raw


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(raw: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number of at least 1; the default where the key is missing or null, as in transformers."""
    value = raw.get(key)
    if value is None:
        return default
    if not _is_whole(value) or value < 1:
        raise ModelError(f"{key}={value!r} must be a whole number of at least 1, or be left out")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    """A number that is not negative; the default only where the key is missing."""
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ModelError(f"{key}={value!r} must be a number of at least 0, or be left out")
    return float(value)


def _reject_unsupported(raw: Mapping[str, Any]) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act={raw['hidden_act']!r} is not supported; supported: silu")
    if raw.get("quantization_config"):
        raise ModelError("quantised weights are not supported; use a float32, float16 or bfloat16 checkpoint")
    other_layers = sorted({str(kind) for kind in raw.get("layer_types") or ()} - {"full_attention"})
    first_sliding = raw.get("max_window_layers", 28)
    sliding = (
        raw["model_type"] != "llama" and raw.get("use_sliding_window") and raw.get("sliding_window", 4096) is not None
    )
    sliding = sliding and not raw.get("layer_types") and first_sliding < raw.get("num_hidden_layers", 0)
    if other_layers or sliding:
        what = ", ".join(other_layers) or f"use_sliding_window from layer {first_sliding}"
        raise ModelError(f"sliding-window layers are not supported ({what}); supported: full attention in every layer")


def _read_rope(raw: Mapping[str, Any], head_dim: int, max_positions: int) -> Rope:
    # As in transformers, the name of version 4 wins over that of version 5.
    named = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    given = raw.get(named) or {}
    if not isinstance(given, Mapping):
        raise ModelError(f"{named}={given!r} must be a JSON object with a rope_type, or null")
    rope: dict[str, Any] = dict(given)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError("rope parameters that differ between layers are not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise ModelError(f"rope type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelError(f"partial_rotary_factor={partial} is not supported; supported: 1.0")
    for key in _ROPE_NUMBERS:
        if rope.get(key) is not None:
            _number(rope, key, 0.0)
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
    _number({"rope_theta": theta}, "rope_theta", 0.0)
    original_key = "original_max_position_embeddings"
    original = _size(raw, original_key, _size(rope, original_key, max_positions))
    if kind == "yarn" and rope.get("factor") is None:
        rope["factor"] = max_positions / original
    return Rope(head_dim=head_dim, theta=float(theta), scaling=_read_scaling(kind, rope, original))


def _read_scaling(kind: str, rope: Mapping[str, Any], original: int) -> RopeScaling | None:
    required = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ())
    missing = [key for key in required if rope.get(key) is None]
    if missing:
        raise ModelError(f"{kind} rope needs {', '.join(missing)} in config.json")
    if kind == "linear":
        return LinearScaling(factor=rope["factor"])
    if kind == "llama3":
        return Llama3Scaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_position_embeddings=original,
        )
    if kind == "yarn":
        truncate = rope.get("truncate")
        return YarnScaling(
            factor=rope["factor"],
            original_max_position_embeddings=original,
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            truncate=True if truncate is None else bool(truncate),
            explicit_attention_factor=rope.get("attention_factor"),
            mscale=rope.get("mscale") or 0.0,
            mscale_all_dim=rope.get("mscale_all_dim") or 0.0,
        )
    return None


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    match scaling:
        case None:
            return {"rope_type": "default"}
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            return {"rope_type": "llama3", **dataclasses.asdict(scaling)}
        case YarnScaling():
            raw = dataclasses.asdict(scaling)
            optional = {
                "attention_factor": raw.pop("explicit_attention_factor"),
                "mscale": raw.pop("mscale") or None,
                "mscale_all_dim": raw.pop("mscale_all_dim") or None,
            }
            return {
                "rope_type": "yarn",
                **raw,
                **{key: value for key, value in optional.items() if value is not None},
            }


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; is it a Hugging Face model folder?") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is not a JSON object")
    return raw

"""The sizes of a model's cache from its ``config.json`` alone, for models that the decoder does not run as well.

What decides the bytes of a cache is how many layers keep all tokens, how many key/value heads each has, and how long
their vectors are. A mixture of experts has ordinary grouped attention, so its cache is known although its experts are
not run here. Attention that keeps something else for each token is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kakeya_jax.cache import CacheShape
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import ModelError

_ALL_HEADS = ("llama", "mistral", "mixtral", "qwen2_moe", "qwen3_moe")
"""Model types whose config may leave out ``num_key_value_heads`` or ``head_dim``, which then follow from the others."""

_WINDOW_IF_ASKED = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "llama")
"""Model types that use ``sliding_window`` only with ``use_sliding_window``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigShape:
    """What a ``config.json`` says of a cache.

    Attributes:
        shape: layers, key/value heads and head dimension.
        model_type: as in the file.
        max_context: tokens the model is meant for; None where the file does not say.
        notes: what to know beside the numbers; one line each.
    """

    shape: CacheShape
    model_type: str
    max_context: int | None = None
    notes: tuple[str, ...] = ()


def read_config_shape(path: str | Path) -> ConfigShape:
    """The sizes that a Hugging Face ``config.json`` gives a cache.

    Args:
        path: the file, under any name.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is no such config, lacks a size, or has attention whose cache is not covered: latents, sliding
            windows, layers without attention.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name its config.json, or use --model {path}")
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ModelError(f"{path} is no Hugging Face config.json: it has no model_type")
    try:
        return config_shape(raw)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None


def config_shape(raw: Mapping[str, Any]) -> ConfigShape:
    """The sizes that a parsed ``config.json`` gives a cache; see ``read_config_shape``."""
    _reject_other_caches(raw)
    model_type = str(raw["model_type"])
    try:
        config = ModelConfig.from_huggingface(raw)
    except ModelError as error:
        shape = _sizes(raw, model_type)
        return ConfigShape(
            shape=shape,
            model_type=model_type,
            max_context=raw.get("max_position_embeddings"),
            notes=(f"bytes only: the decoder here does not run this model ({error})",),
        )
    return ConfigShape(shape=CacheShape.of(config), model_type=model_type, max_context=config.max_position_embeddings)


def _reject_other_caches(raw: Mapping[str, Any]) -> None:
    rank = raw.get("kv_lora_rank")
    if rank is not None:
        rope = raw.get("qk_rope_head_dim", "?")
        raise ModelError(
            f"multi-head latent attention (kv_lora_rank={rank}) is not covered: each layer keeps one latent of {rank} "
            f"numbers and a rotary key of {rope} a token, not keys and values of heads, which is what the codecs code"
        )
    for key, what in (
        ("is_encoder_decoder", "an encoder-decoder"),
        ("cross_attention_layers", "cross-attention layers"),
        ("num_kv_shared_layers", "layers that share keys and values"),
        ("text_config", "a config of several parts; give the text model's"),
    ):
        if raw.get(key):
            raise ModelError(f"{key}={_brief(raw[key])} is not covered: {what}")
    kinds = sorted({str(kind) for kind in raw.get("layer_types") or ()} - {"full_attention"})
    if kinds:
        count = sum(kind != "full_attention" for kind in raw["layer_types"])
        raise ModelError(
            f"layers without full attention are not covered: {count} of {len(raw['layer_types'])} layers are "
            f"{', '.join(kinds)} and do not keep every token"
        )
    for key in ("layers_block_type", "attn_layer_period", "full_attention_interval", "hybrid_override_pattern"):
        if raw.get(key):
            raise ModelError(f"{key}={_brief(raw[key])} is not covered: some layers have no attention")
    window = raw.get("sliding_window")
    if window and not raw.get("layer_types") and _uses_window(raw):
        raise ModelError(f"sliding_window={window} is not covered: such layers do not keep every token")


def _uses_window(raw: Mapping[str, Any]) -> bool:
    if raw["model_type"] == "llama":
        return False
    if not raw.get("use_sliding_window", raw["model_type"] not in _WINDOW_IF_ASKED):
        return False
    first = raw.get("max_window_layers", 28) if raw["model_type"] in _WINDOW_IF_ASKED else 0
    return first < raw.get("num_hidden_layers", 0)


def _sizes(raw: Mapping[str, Any], model_type: str) -> CacheShape:
    layers, heads = (_whole(raw, key) for key in ("num_hidden_layers", "num_attention_heads"))
    derived = model_type in _ALL_HEADS
    kv_heads = heads if derived and raw.get("num_key_value_heads") is None else _whole(raw, "num_key_value_heads")
    if raw.get("head_dim") is not None or not derived or model_type == "qwen3_moe":
        head_dim = _whole(raw, "head_dim")
    else:
        hidden = _whole(raw, "hidden_size")
        if hidden % heads:
            raise ModelError(
                f"hidden_size={hidden} is no multiple of num_attention_heads={heads}, and head_dim is missing"
            )
        head_dim = hidden // heads
    if heads % kv_heads:
        raise ModelError(f"num_key_value_heads={kv_heads} must divide num_attention_heads={heads}")
    return CacheShape(num_layers=layers, num_kv_heads=kv_heads, head_dim=head_dim)


def _whole(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{key}={value!r} must be a whole number of at least 1")
    return value


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

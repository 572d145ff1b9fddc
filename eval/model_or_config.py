"""A model, or random weights of a ``config.json``: what benchmarks of speed run on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.models import checkpoint
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.models.locate import display_name


def load(name: str, config_json: Path | None, *, dtype: Any, offline: bool) -> tuple[Decoder, Any]:
    """The decoder and its parameters: of the model ``name``, or random ones of ``config_json`` if it is given.

    Raises:
        ValueError, OSError: there is no such model; the message is one line.
    """
    if config_json is None:
        return checkpoint.load(name, dtype=dtype, offline=offline)
    model = Decoder(ModelConfig.from_file(config_json), dtype=dtype, param_dtype=dtype)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def shown_name(name: str, config_json: Path | None) -> str:
    """For tables and files."""
    return display_name(name) if config_json is None else f"random weights, {config_json.name}"

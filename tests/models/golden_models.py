"""The golden models, loaded."""

import functools
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from make_golden import CASES, GOLDEN
from safetensors.numpy import load_file

from kakeya_jax import models
from kakeya_jax.models.decoder import Decoder, DecoderOutput

NAMES = tuple(CASES)


@functools.cache
def golden(name: str) -> tuple[Decoder, dict[str, Any]]:
    return models.load(GOLDEN / name, precision="highest")


def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the logits that transformers gives for them."""
    stored = load_file(GOLDEN / name / "expected.safetensors")
    return stored["tokens"], stored["logits"]


def folder_of(name: str) -> Path:
    return GOLDEN / name


def compilations(jitted: Any) -> int:
    """How often a jitted function has been compiled."""
    return jitted._cache_size()


@functools.partial(jax.jit, static_argnames=("model", "last_only"))
def run(model: Decoder, params: Any, tokens: Any, cache: Any = None, mask: Any = None, last_only: bool = False):
    """The jitted forward pass."""
    out = model.apply({"params": params}, tokens, cache=cache, mask=mask, last_only=last_only)
    return cast(DecoderOutput, out)

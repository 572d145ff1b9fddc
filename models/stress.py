"""The same model with outlier channels: scaled keys and values whose scale the rest of the layer undoes.

Released checkpoints have key channels many times larger than the rest, small models of a few million parameters do not.
Scaling a rotary pair of keys by ``s`` and the same pair of the queries that read them by ``1 / s`` leaves every logit
as it is, since a rotation of the pair commutes with both; scaling a channel of values by ``s`` and the rows of the
output projection that read it by ``1 / s`` leaves every output as it is. What changes is what a cache has to code.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kakeya_jax.models.config import ModelConfig

FACTORS = (8.0, 32.0, 128.0)
"""Factors worth measuring. At a power of two every float only changes its exponent: dense logits stay bit for bit."""

PAIRS = 2
"""Rotary pairs of each key head, and as many channels of each value head, that are scaled."""

_Flat = dict[tuple[str, ...], Any]


def stress(params: Mapping[str, Any], config: ModelConfig, factor: float, *, seed: int = 0) -> dict[str, Any]:
    """Parameters of the same function with ``PAIRS`` scaled key pairs and value channels in every head.

    Args:
        params: of ``Decoder(config)``; not changed.
        config: the architecture. With norms of each query and key head, whose scales all heads share, the same pairs
            are scaled in all heads of a layer.
        factor: what keys and values are multiplied by, for example one of ``FACTORS``; 1 changes nothing.
        seed: which pairs and channels; every head of every layer draws its own.

    Raises:
        ValueError: ``factor`` is not a positive finite number.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"stress factor {factor} must be a positive number, for example 32")
    flat: _Flat = dict(traverse_util.flatten_dict(dict(params)))
    rng = np.random.default_rng(seed)
    for layer in range(config.num_layers):
        path = (f"layers_{layer}", "attention")
        _scale_keys(flat, path, config, factor, rng)
        _scale_values(flat, path, config, factor, rng)
    return traverse_util.unflatten_dict(flat)


def stressed_name(model: str, factor: float) -> str:
    """What a stressed model is called beside its numbers: ``house+stress32``."""
    return f"{model}+stress{factor:g}"


def _scale_keys(
    flat: _Flat, path: tuple[str, ...], config: ModelConfig, factor: float, rng: np.random.Generator
) -> None:
    half = config.head_dim // 2
    heads = 1 if config.qk_norm else config.num_kv_heads
    key = np.ones((heads, config.head_dim), np.float32)
    for head in range(heads):
        pairs = rng.choice(half, min(PAIRS, half), replace=False)
        key[head, pairs] = key[head, pairs + half] = factor
    if config.qk_norm:
        _multiply(flat, (*path, "k_norm"), key[0])
        _multiply(flat, (*path, "q_norm"), 1 / key[0])
        return
    query = np.repeat(1 / key, config.num_heads // heads, axis=0)
    _multiply(flat, (*path, "k_proj"), key.reshape(-1))
    _multiply(flat, (*path, "q_proj"), query.reshape(-1))


def _scale_values(
    flat: _Flat, path: tuple[str, ...], config: ModelConfig, factor: float, rng: np.random.Generator
) -> None:
    value = np.ones((config.num_kv_heads, config.head_dim), np.float32)
    for head in range(config.num_kv_heads):
        value[head, rng.choice(config.head_dim, PAIRS, replace=False)] = factor
    read = np.repeat(1 / value, config.num_heads // config.num_kv_heads, axis=0)
    _multiply(flat, (*path, "v_proj"), value.reshape(-1))
    kernel = (*path, "o_proj", "kernel")
    flat[kernel] = flat[kernel] * jnp.asarray(read.reshape(-1, 1), flat[kernel].dtype)


def _multiply(flat: _Flat, module: tuple[str, ...], outputs: np.ndarray) -> None:
    """Scales the outputs of a projection or of a norm; a bias is part of them."""
    for name in ("kernel", "bias", "scale"):
        if (*module, name) in flat:
            held = flat[*module, name]
            flat[*module, name] = held * jnp.asarray(outputs, held.dtype)

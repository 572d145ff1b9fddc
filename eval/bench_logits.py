"""Logits alone over packed keys, beside a dense product of float16: the gate of a fused kernel for logits.

No attention of this library computes logits alone. A kernel for them over packed codes of 4 bits once had to be twice
as fast as the dense product at 8,192 and 16,384 tokens, with 8 queries for a head of 128 channels, and was not; this
measures the same thing in the skeleton of the attention kernel.
"""

from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp

from kakeya_jax.cache import LayerCache
from kakeya_jax.codecs.turboquant import TurboQuant
from kakeya_jax.eval.bench_attention import AttentionSpeed, copies, random_layers, time_calls
from kakeya_jax.pallas_kernels.attention.arg_specs import ArgSpec
from kakeya_jax.pallas_kernels.attention.coded_logits import coded_logits
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.pallas_kernels.attention.coded_streams import coded_stream
from kakeya_jax.pallas_kernels.attention.program_counts import choose_splits
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array

_TINY = 1e-6
"""Share of the logits in the next query: each call waits for the one before."""


def bench_logits(
    spec: ArgSpec,
    recipes: Sequence[str],
    *,
    repeats: int = 51,
    interpret: bool = False,
    done: Collection[str] = (),
    on_row: Callable[[AttentionSpeed], None] = lambda row: None,
    on_skip: Callable[[str, str], None] = lambda name, reason: None,
) -> list[AttentionSpeed]:
    """Times the logits of one decode step of one layer.

    Args:
        spec: the shape; whole tiles of 64 tokens.
        recipes: whose keys are ``turboquant``.
        repeats: loops that are timed.
        interpret: run the kernel in numpy, on any machine.
        done: names of rows that are there already and are not measured again.
        on_row: called with each row as soon as it is measured.
        on_skip: called with the name of what does not run here, and why.
    """
    rows: list[AttentionSpeed] = []

    def keep(row: AttentionSpeed) -> None:
        rows.append(row)
        on_row(row)

    if "dense logits" not in done:
        keep(_time_dense(spec, repeats))
    for recipe in recipes:
        if f"{recipe} logits" in done:
            continue
        if not interpret and jax.default_backend() != "gpu":
            on_skip(f"{recipe} logits", "no NVIDIA GPU")
        else:
            layers = random_layers(spec, Recipe.parse(recipe))
            if isinstance(layers[0].key.codec, TurboQuant):
                keep(_time_coded(recipe, spec, layers, repeats, interpret=interpret))
            else:
                on_skip(f"{recipe} logits", "keys are not of turboquant")
    return rows


def _time_dense(spec: ArgSpec, repeats: int) -> AttentionSpeed:
    nbytes = spec.dense_nbytes // 2
    shape = (spec.batch, spec.num_kv_heads, spec.tokens, spec.head_dim)
    buffers = [jax.random.normal(jax.random.key(index), shape, jnp.float16) for index in range(copies(nbytes))]

    def call(query: Array, keys: Array) -> Array:
        logits = jnp.einsum("bkgd,bktd->bkgt", query, keys, preferred_element_type=jnp.float32)
        return _next(query, logits)

    return time_calls("dense logits", call, _query(spec), buffers, nbytes, repeats)


def _time_coded(
    recipe: str, spec: ArgSpec, layers: list[LayerCache], repeats: int, *, interpret: bool
) -> AttentionSpeed:
    heads = spec.batch * spec.num_kv_heads
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(layers[0].key.blocks))

    def call(query: Array, layer: LayerCache) -> Array:
        key = coded_stream(layer.key)
        assert isinstance(key.codes, Codes)
        logits = coded_logits(
            query.reshape(heads, spec.group, spec.head_dim),
            key.words,
            key.scales[..., 0],
            rotation=key.rotation,
            key=key.codes,
            key_unit=key.unit,
            scale=1.0,
            splits=choose_splits(heads, spec.tokens),
            interpret=interpret,
        )
        return _next(query, logits.reshape(spec.batch, spec.num_kv_heads, spec.group, -1))

    return time_calls(f"{recipe} logits", call, _query(spec), layers, nbytes, repeats)


def _next(query: Array, logits: Array) -> Array:
    return query + (_TINY * logits[..., : query.shape[-1]]).astype(query.dtype)


def _query(spec: ArgSpec) -> Array:
    shape = (spec.batch, spec.num_kv_heads, spec.group, spec.head_dim)
    return jax.random.normal(jax.random.key(1), shape, jnp.float16)

"""Real keys, values and queries of a model, cut into blocks as a cache would cut them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.calibration.codec_tables import dense_vectors
from kakeya_jax.calibration.collect import SKIPPED
from kakeya_jax.eval.ablations.ablation import Setup
from kakeya_jax.eval.perplexity import LEAST_SCORED
from kakeya_jax.eval.text import cut_passages, passage_count
from kakeya_jax.typing import Float

BLOCK = 512


class Blocks(NamedTuple):
    """Blocks of one stream: ``L`` layers, ``K`` heads, ``b`` blocks of each in all passages.

    Attributes:
        vectors: ``[L, K, b, n, D]``; keys before their rotary embedding.
        query_moment: ``[L, K, D, D]`` second moment of the queries that read them, before theirs.
        passages: how many texts they come from.
    """

    vectors: Float[np.ndarray, "L K b n D"]
    query_moment: Float[np.ndarray, "L K D D"]
    passages: int


def real_blocks(setup: Setup, stream: str) -> Blocks:
    """Blocks of ``BLOCK`` tokens (fewer if a passage has fewer) after the first tokens, which recipes keep exact.

    Args:
        setup: whose passages are run, densely; by default as many as give 20,000 tokens of blocks.
        stream: ``"key"`` or ``"value"``.
    """
    vectors_of = jax.jit(functools.partial(dense_vectors, setup.model))
    size = min(BLOCK, setup.context - SKIPPED)
    kept_tokens = (setup.context - SKIPPED) // size * size
    count = setup.passages or passage_count(len(setup.tokens), setup.context, kept_tokens, LEAST_SCORED)
    found, moments = [], []
    for tokens in cut_passages(setup.tokens, setup.context, count):
        layers = vectors_of(setup.params, jnp.asarray(tokens))
        kept = np.stack([np.asarray(layer[stream])[:, SKIPPED:] for layer in layers])
        blocks = kept[:, :, :kept_tokens]
        found.append(blocks.reshape(*blocks.shape[:2], -1, size, blocks.shape[-1]))
        query = np.stack([np.asarray(layer["query"]) for layer in layers]).astype(np.float64)
        grouped = query.reshape(*kept.shape[:2], -1, query.shape[-1])
        moments.append(np.einsum("lkqd,lkqe->lkde", grouped, grouped) / grouped.shape[2])
    return Blocks(np.concatenate(found, axis=2), np.mean(moments, axis=0).astype(np.float32), count)

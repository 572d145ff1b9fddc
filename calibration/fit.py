"""Calibration: from a model and training text to everything that calibrated codecs need."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import kakeya_jax
from kakeya_jax.cache import CacheShape
from kakeya_jax.calibration import stability
from kakeya_jax.calibration.artifact import Calibration, ExactTokens, fingerprint, text_hash, text_windows
from kakeya_jax.calibration.codec_tables import check_recipes, fit_codec_tables
from kakeya_jax.calibration.merge import merge_statistics
from kakeya_jax.calibration.passes import Progress, Run
from kakeya_jax.calibration.resume import Resume
from kakeya_jax.recipe import DEFAULT_RECENT, DEFAULT_SINKS, Recipe
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Int

STANDARD = ExactTokens(sinks=DEFAULT_SINKS, recent=DEFAULT_RECENT, page=128)
"""The exact window of recipes that say nothing else."""

MOST_JOINT_CHANNELS = 2048
"""Keys and values of all heads of a layer are correlated with each other up to so many channels."""


def fit(
    model: Any,
    params: Any,
    passages: Int[np.ndarray, "N T"],
    *,
    recipes: Sequence[Recipe] = (),
    exact: Sequence[ExactTokens] = (STANDARD,),
    samples: int = 4,
    seed: int = 0,
    joint: bool | None = None,
    backward: bool = True,
    devices: Sequence[Any] | None = None,
    resume: pathlib.Path | None = None,
    about: dict[str, Any] | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Calibration:
    """Statistics of the model on ``passages``, and the tables of codecs that are fitted one by one.

    Even and odd passages are summed apart, to see how much the fit owes to the text (``calibration.stability``).

    Args:
        model: the decoder; float32 activations.
        params: its parameters.
        passages: training text; never text that will be evaluated.
        recipes: recipes with codecs that need tables of their own (calibrated centroids or scales, a shared basis).
        exact: the exact windows that recipes will use: what an error costs depends on how near to its query a token
            may be coded. All of them together take little more time than one.
        samples: draws of labels, a backward pass each, for every passage.
        seed: of the draws.
        joint: also collect the covariance of all of a layer's heads together; None: if they are at most
            ``MOST_JOINT_CHANNELS`` channels.
        backward: use gradients; without them Fisher matrices are approximated (``calibration.differences``).
        devices: passages are dealt out to them, each with a copy of the parameters; None: all of this process.
        resume: where to keep the sums of an unfinished run; an interrupted call with the same arguments goes on from
            there. The caller deletes the file when the result is safe.
        about: notes for the file's header.
        progress: told the steps done, their number, and what comes next.

    Raises:
        ValueError: passages too short to code anything of, or for a codec's block; or ``resume`` holds another run.
    """
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    config = model.config
    check_recipes(recipes, config.num_layers, passages.shape[1])
    windows = tuple(_geometry(each, passages.shape[1]) for each in exact)
    with_joint = 2 * config.num_kv_heads * config.head_dim <= MOST_JOINT_CHANNELS if joint is None else joint
    identity: dict[str, Any] = {
        "model": fingerprint(params),
        "text": text_hash(passages),
        "windows": [str(each) for each in exact],
        "samples": samples if backward else 0,
        "seed": seed,
        "joint": with_joint,
        "backward": backward,
        "version": kakeya_jax.__version__,
    }
    run = Run(
        model=model,
        params=params,
        passages=passages,
        windows=windows,
        samples=samples,
        seed=seed,
        joint=with_joint,
        backward=backward,
        devices=list(devices or jax.local_devices()),
        file=None if resume is None else Resume(path=resume, run=identity),
        progress=progress,
    )
    with jax.default_matmul_precision("highest"):  # TF32 on a GPU would drown finite differences
        halves = run.halves()
    merged = merge_statistics(*halves)
    frequencies = tuple(map(float, config.rope.frequencies))
    notes = {
        "tokens": int(passages.size),
        "passages": len(passages),
        "passage_length": passages.shape[1],
        "label_samples": identity["samples"],
        "seed": seed,
        "corpus_hash": identity["text"],
        "stability": stability.compare(*halves, exact, frequencies) if len(passages) > 1 else [],
        **(about or {}),
    }
    calibration = Calibration(
        statistics=merged,
        fitted={},
        exact=tuple(exact),
        rope_frequencies=frequencies,
        rope_factor=float(config.rope.attention_factor),
        shape=CacheShape.of(config),
        model=identity["model"],
        corpus=text_windows(passages),
        fisher="gradients" if backward else "differences",
        about=notes,
    )
    fitted = fit_codec_tables(model, params, passages, recipes, calibration)
    return dataclasses.replace(calibration, fitted=fitted)


def _geometry(exact: ExactTokens, length: int) -> Geometry:
    geometry = Geometry(sinks=exact.sinks, recent=exact.recent, page=exact.page, max_length=length)
    if geometry.num_pages == 0:
        raise ValueError(
            f"passages of {length} tokens code nothing with {exact}; use passages of at least "
            f"{exact.sinks + exact.recent + exact.page} tokens"
        )
    return geometry

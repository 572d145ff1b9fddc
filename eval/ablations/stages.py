"""Where does the error of one tensor come from?"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import hadamard, kmeans, lloyd_max, pca, smallrng
from kakeya_jax.codecs.kakeya_config import KakeyaConfig
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup
from kakeya_jax.eval.ablations.real_vectors import real_blocks
from kakeya_jax.eval.ablations.recipe_cells import number
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.numeric import EPS, to_f16
from kakeya_jax.typing import Array, Float

STAGES = ("rank", "skeleton as float16", "quantiser", "scalars as float16")
"""What loses something, in the order of the encoder; k-means itself loses nothing."""


def stage_reconstructions(config: KakeyaConfig, block: Float[Array, "n d"]) -> tuple[Float[Array, "stages n d"], Array]:
    """The block after each of ``STAGES``, those before included, and the reconstruction without k-means.

    The last of ``STAGES`` is the codec's own round trip; the other is what it would be if all coefficients were
    quantised and no direction taken out of them first.

    Args:
        config: ``kakeya`` with exact PCA, Gaussian levels, and none of its further options.
        block: the vectors.
    """
    rank = config.rank_of(block.shape[1])
    signs = jnp.asarray(smallrng.signs(config.seed, hadamard.next_power_of_two(rank)))
    levels = jnp.asarray(lloyd_max.gaussian_levels(config.bits))
    found = pca.exact_pca(block, rank)
    truncated = pca.reconstruct(pca.project(block, found.mean, found.basis), found.mean, found.basis)
    mean, basis = (each.astype(config.skeleton_dtype).astype(jnp.float32) for each in (found.mean, found.basis))
    coefficients = pca.project(block, mean, basis)

    def quantised(residual: Array, rounded: Callable[[Array], Array]) -> Array:
        norm = kmeans.row_norms(residual)
        padded = jnp.pad(residual, ((0, 0), (0, len(signs) - rank)))
        z = hadamard.rotate(padded, signs) / jnp.where(norm > EPS, norm, 1.0)[:, None]
        z = lloyd_max.dequantize(lloyd_max.quantize(z, levels), levels)
        return hadamard.unrotate(z * rounded(norm)[:, None], signs)[:, :rank]

    def as_float16(x: Array) -> Array:
        return to_f16(x).astype(jnp.float32)

    centers = kmeans.fit_centers(
        coefficients, config.kmeans_centers, iterations=config.kmeans_iterations, seed=config.seed
    )
    centers = centers.astype(jnp.float16).astype(jnp.float32)
    chosen = kmeans.assign(coefficients, centers)
    direction = centers[chosen.segment]
    residual = coefficients - chosen.projection[:, None] * direction

    def decoded(coefficients: Array) -> Array:
        return pca.reconstruct(coefficients, mean, basis)

    stages = [
        truncated,
        decoded(coefficients),
        decoded(chosen.projection[:, None] * direction + quantised(residual, lambda x: x)),
        decoded(as_float16(chosen.projection)[:, None] * direction + quantised(residual, as_float16)),
    ]
    return jnp.stack(stages), decoded(quantised(coefficients, as_float16))


def stage_energies(
    config: KakeyaConfig, block: Float[Array, "n d"], metric: Float[Array, "d d"]
) -> dict[str, Float[Array, ""]]:
    """Error energy that each stage adds (they sum to the total's), of all, and of the block around its mean.

    Args:
        config: as ``stage_reconstructions``.
        block: the vectors.
        metric: ``M`` of the energy ``e M e^T``.
    """

    def energy(error: Array) -> Array:
        return jnp.einsum("nd,de,ne->", error, metric, error, precision="highest")

    after, without = stage_reconstructions(config, block)
    errors = [energy(block - each) for each in after]
    added = [errors[0], *(later - earlier for earlier, later in itertools.pairwise(errors))]
    return {
        **dict(zip(STAGES, added, strict=True)),
        "total": errors[-1],
        "total without k-means": energy(block - without),
        "signal": energy(block - block.mean(axis=0)),
        "mean": energy(jnp.broadcast_to(block.mean(axis=0), block.shape)),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagesCell:
    """A stream of one layer, or of all (None), at a rank."""

    label: str
    stream: str
    layer: int | None
    rank: float | None

    @property
    def recipe(self) -> None:
        """No recipe: nothing runs through a cache."""
        return

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"stages": self.stream, "layer": self.layer, "rank": self.rank}

    def measure(self, setup: Setup) -> Row:
        """Energies as shares of the stream's energy around its block means; plain, and in the queries' metric."""
        blocks = real_blocks(setup, self.stream)
        which = slice(None) if self.layer is None else slice(self.layer, self.layer + 1)
        vectors, moments = jnp.asarray(blocks.vectors[which]), jnp.asarray(blocks.query_moment[which])
        config = KakeyaConfig(bits=3, rank=self.rank, block_size=vectors.shape[3])
        run = jax.jit(
            jax.vmap(jax.vmap(jax.vmap(functools.partial(stage_energies, config), (0, None)), (0, 0)), (0, 0))
        )
        plain = run(vectors, jnp.broadcast_to(jnp.eye(vectors.shape[-1]), moments.shape))
        tokens = vectors.shape[2] * vectors.shape[3]
        row: Row = {"tokens_scored": tokens, "passages": blocks.passages, "plain": _shares(plain)}
        if self.stream == "key":
            row["attention"] = _shares(run(vectors, moments))
        return row


def _shares(energies: dict[str, Array]) -> dict[str, float]:
    sums = {name: float(np.asarray(each, np.float64).sum()) for name, each in energies.items()}
    return {name: value / sums["signal"] for name, value in sums.items() if name != "signal"}


def _cells(config: ModelConfig, context: int) -> tuple[StagesCell, ...]:
    del context
    cells = [
        StagesCell(label=f"{stream[0].upper()}: all layers, {title}", stream=stream, layer=None, rank=rank)
        for stream in ("key", "value")
        for title, rank in (("rank D", None), ("rank D/2", 0.5))
    ]
    cells += [
        StagesCell(label=f"K: layer {layer}, rank D/2", stream="key", layer=layer, rank=0.5)
        for layer in range(config.num_layers)
    ]
    return tuple(cells)


def _share(metric: str, name: str) -> Callable[[Row], str]:
    return lambda row: number(100 * row[metric][name], ".3f") if metric in row else "-"


ABLATION = Ablation(
    name="stages",
    question="Where does the error of one tensor come from: skeleton, k-means, quantiser or rounding?",
    claims=(
        "KakeyaTurbo: a structural floor that more bits do not lower (its reconstruction error hardly moved with b)",
    ),
    cells=_cells,
    columns=(
        *(Column(title=f"{name}, %", text=_share("plain", name)) for name in STAGES),
        Column(title="total, %", text=_share("plain", "total")),
        Column(title="total without k-means, %", text=_share("plain", "total without k-means")),
        Column(title="energy of the means, %", text=_share("plain", "mean")),
        Column(title="total in the queries' metric, %", text=_share("attention", "total")),
        Column(title="of which rank, %", text=_share("attention", "rank")),
    ),
    notes=(
        "kakeya at 3 bits with exact PCA, on real keys (before their rotary embedding) and values. Error energy that "
        "each stage adds to those before it, in % of the energy of the vectors around their block's mean; the stages "
        "sum to the total. The queries' metric is that of attention logits.",
    ),
    seconds=8.0,
)

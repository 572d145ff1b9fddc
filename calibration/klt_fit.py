"""From second moments to the tables of the transform codec: coordinates, and one bit budget for all of them.

All on the host in float64: the matrices are small, and nothing here depends on the number of tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kakeya_jax import klt_layout
from kakeya_jax.calibration.fisher_root import FISHER_RIDGE, LEAST_SHARE, fisher_root
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.typing import Float, StreamName

COHERENCE: Mapping[tuple[StreamName, bool], float] = {
    ("key", False): 3.0,
    ("value", False): 10.0,
    ("key", True): 2.0,
    ("value", True): 4.0,
}
"""What squared bias costs against independent error, by stream and whether page means are taken out. Bias adds up over
the tokens that a query attends to; the Fisher matrix of single tokens does not see that. A page's mean carries part of
what a dropped channel would be biased by. Tuned once on one passage of another text (see docs)."""


def coordinates(
    config: KltConfig,
    stream: StreamName,
    mean: Float[np.ndarray, "K D"],
    covariance: Float[np.ndarray, "K D D"] | Float[np.ndarray, "KD KD"],
    fisher: Float[np.ndarray, "K D D"],
    rope_frequencies: Float[np.ndarray, " half"],
    *,
    ridge: float = FISHER_RIDGE,
) -> dict[str, np.ndarray]:
    """Mean and maps of every unit of one stream: its heads, or groups of ``config.heads_together`` of them.

    With ``F = H H^T`` the Fisher matrix and ``S`` the covariance, ``A = H U`` where ``U`` are the eigenvectors of
    ``H^T S H``: coordinates that are uncorrelated, and in whose metric the expected loss is plain squared
    error, so rounding to the nearest level is already the best rounding.

    Keys of the fast form are coded as ``R_d (k - mean)``: their mean is taken out at every position ``d`` of a page, so
    only ``S`` and ``F`` are averaged over its rotations.

    A unit whose Fisher matrices are all zero costs nothing, and its variances are zero: it takes no bits, and what
    decodes is its mean. Its maps, and those of a dead head beside a live one, are those of a plain metric.

    Args:
        config: of the codec; its form decides whether moments of keys are averaged over the rotations within a page.
        stream: which stream.
        mean: of keys before their rotary embedding, or of values.
        covariance: about that mean: of each head, or ``[K D, K D]`` of all heads, which several together need.
        fisher: of the same vectors, head by head.
        rope_frequencies: radians per position.
        ridge: of the Fisher matrices; see ``fisher_root``.

    Returns:
        Tables of ``KltConfig`` except ``widths``, float32.

    Raises:
        ValueError: a matrix is not finite.
    """
    mean, covariance, fisher = (np.asarray(each, np.float64) for each in (mean, covariance, fisher))
    for name, each in (("mean", mean), ("covariance", covariance), ("fisher", fisher)):
        if not np.isfinite(each).all():
            raise ValueError(f"klt: the calibrated {name} of the {stream}s is not finite; calibrate again")
    heads, dim = mean.shape
    together = config.heads_together
    if heads % together:
        raise ValueError(f"klt: heads_together={together} must divide the {heads} key/value heads of the model")
    # [U, h, h, D, D]: what each pair of a unit's heads has in common.
    blocks = _blocks(covariance, heads, together)
    if config.form == "fast" and stream == "key":
        blocks, fisher = (
            second_moment_over_page(each, rope_frequencies, config.block_size) for each in (blocks, fisher)
        )
    wide = blocks.transpose(0, 1, 3, 2, 4).reshape(-1, together * dim, together * dim)
    units = [_unit_coordinates(*each, ridge) for each in zip(wide, fisher.reshape(-1, together, dim, dim), strict=True)]
    analysis, synthesis, variances = (np.stack(each).astype(np.float32) for each in zip(*units, strict=True))
    return {
        "mean": mean.reshape(len(units), -1).astype(np.float32),
        "analysis": analysis,
        "synthesis": synthesis,
        "variances": variances,
        "rope_frequencies": np.asarray(rope_frequencies, np.float32),
    }


def layouts(config: KltConfig, streams: Sequence[tuple[StreamName, Float[np.ndarray, "K D"]]]) -> list[np.ndarray]:
    """Widths ``[K, G]`` of every stream: one budget of ``config.bits`` over all of them.

    Groups of channels that cost nothing take no bits, even if some are left.

    Args:
        config: the budget and what it may be spent on.
        streams: which stream, and its ``variances``.
    """
    groups = [group_variances(config, variances) for _, variances in streams]
    if config.shared_layout:
        groups = [each.sum(axis=0, keepdims=True) for each in groups]
    coherences = [COHERENCE[stream, config.page_mean] for stream, _ in streams]
    widths = klt_layout.allocate(groups, coherences, config.bits, config.widths, config.quantizer)
    widths = [np.where(group > 0, each, 0) for group, each in zip(groups, widths, strict=True)]
    return [
        np.broadcast_to(each, group_variances(config, variances).shape)
        for each, (_, variances) in zip(widths, streams, strict=True)
    ]


def predicted_kl(config: KltConfig, streams: Sequence[tuple[StreamName, np.ndarray, np.ndarray]]) -> float:
    """What the allocation expects a token's codes to cost, in nats: half the summed loss.

    Args:
        config: of the codec.
        streams: for each stream its name, ``variances`` ``[K, D]`` and ``widths`` ``[K, G]``.
    """
    total = 0.0
    for stream, variances, widths in streams:
        coherence = COHERENCE[stream, config.page_mean]
        losses = {width: klt_layout.loss(width, coherence, config.quantizer) for width in (0, *config.widths)}
        each = np.vectorize(losses.__getitem__)(widths)
        total += 0.5 * float(np.sum(group_variances(config, variances) * each))
    return total


def group_variances(config: KltConfig, variances: np.ndarray) -> np.ndarray:
    """Summed variances ``[U, G]`` of the channel groups that share a width, from those of channels, ``[U, E]``."""
    units, channels = variances.shape
    size = klt_layout.channels_per_group(channels // config.heads_together)
    return np.asarray(variances, np.float64).reshape(units, channels // size, size).sum(axis=2)


def _blocks(covariance: np.ndarray, heads: int, together: int) -> Float[np.ndarray, "U h h D D"]:
    """Covariances of every pair of heads that share a unit."""
    if covariance.ndim == 3:
        if together > 1:
            raise ValueError("klt: heads_together needs the covariance of all heads, [K D, K D]")
        return covariance[:, None, None]
    dim = len(covariance) // heads
    units = heads // together
    grid = covariance.reshape(units, together, dim, units, together, dim)
    return np.stack([grid[unit, :, :, unit].transpose(0, 2, 1, 3) for unit in range(units)])


def _unit_coordinates(
    covariance: Float[np.ndarray, "E E"], fisher: Float[np.ndarray, "h D D"], ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Analysis, synthesis and variances of one unit; its Fisher matrix has a block for each head."""
    half, inverse_half, level = fisher_root(fisher, ridge=ridge)
    variances, axes = np.linalg.eigh(half.T @ (0.5 * (covariance + covariance.T)) @ half)
    variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    floor = max(float(variances[0]) * LEAST_SHARE, np.finfo(np.float32).tiny * 1e6)
    deviation = np.sqrt(np.maximum(variances, floor))
    return half @ axes / deviation, (axes.T @ inverse_half) * deviation[:, None], variances * level


def second_moment_over_page(moment: np.ndarray, frequencies: np.ndarray, page: int) -> np.ndarray:
    """``mean over d < page of R_d M R_d^T``, channel ``i`` paired with ``i + D / 2`` as one complex number.

    For complex coordinates ``u``, a rotation multiplies ``E u u^H`` by ``e^(i (w_a - w_b) d)`` and ``E u u^T`` by
    ``e^(i (w_a + w_b) d)``; the average over ``d`` is a geometric series.
    """
    half = moment.shape[-1] // 2
    frequencies = np.asarray(frequencies, np.float64)
    first, upper = moment[..., :half, :half], moment[..., :half, half:]
    lower, second = moment[..., half:, :half], moment[..., half:, half:]
    hermitian = (first + second + 1j * (lower - upper)) * _phase(frequencies[:, None] - frequencies, page)
    plain = (first - second + 1j * (lower + upper)) * _phase(frequencies[:, None] + frequencies, page)
    top = np.concatenate([(hermitian + plain).real, (plain - hermitian).imag], axis=-1)
    bottom = np.concatenate([(hermitian + plain).imag, (hermitian - plain).real], axis=-1)
    return 0.5 * np.concatenate([top, bottom], axis=-2)


def _phase(frequency: np.ndarray, page: int) -> np.ndarray:
    """``mean over d < page of e^(i frequency d)``."""
    return np.mean(np.exp(1j * frequency[..., None] * np.arange(page)), axis=-1)

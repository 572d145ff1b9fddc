"""The Kakeya codec in plain numpy: a loop over blocks, array operations inside a block.

Written from the method's description, not from the JAX code; shared with it are the config, the random draws,
the published levels and the default number of outlier slots. No accelerations beyond numpy's own: singular
value decompositions and QR factorisations stand where the method names them.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from kakeya_jax import smallrng
from kakeya_jax.codecs.kakeya import KakeyaConfig
from kakeya_jax.eval.numpy_codecs.packing import pack, unpack
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.numeric import EPS
from kakeya_jax.outliers import default_slots


class Skeleton(NamedTuple):
    """Mean ``[d]`` and basis ``[r, d]`` as stored, and how many rows of the basis are in use."""

    mean: np.ndarray
    basis: np.ndarray
    retained: int


class BlockCode(NamedTuple):
    """The stored arrays of one block, with the names, shapes and dtypes of ``KakeyaCode``."""

    codes: np.ndarray
    segment: np.ndarray
    projection: np.ndarray
    norm: np.ndarray
    centers: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    outlier_index: np.ndarray | None
    outlier_value: np.ndarray | None


def encode(vectors: np.ndarray, config: KakeyaConfig) -> list[BlockCode]:
    """The codes of the full blocks of ``vectors`` ``[N, d]`` (float32, finite), one after the other."""
    size = config.block_size
    return [encode_block(vectors[i : i + size], config) for i in range(0, len(vectors) - size + 1, size)]


def decode(codes: list[BlockCode], config: KakeyaConfig) -> np.ndarray:
    """The reconstruction ``[N, d]`` of consecutive blocks."""
    return np.concatenate([decode_block(code, config) for code in codes])


def fit_skeleton(block: np.ndarray, config: KakeyaConfig) -> Skeleton:
    """Principal components of one block, in the precision in which they are stored."""
    n, d = block.shape
    rank = config.rank_of(d)
    mean = block.mean(axis=0)
    centred = block - mean
    if config.pca == "exact":
        values, vectors = np.linalg.eigh(centred.T @ centred / n)
        values, basis = values[::-1], vectors[:, ::-1].T
    else:
        omega = smallrng.normal_matrix(config.seed ^ 0x9E3779B97F4A7C15, n, min(rank + config.oversample, d))
        span = centred.T @ omega
        for _ in range(config.power_iterations):
            tall, _ = np.linalg.qr(centred @ span)
            span, _ = np.linalg.qr(centred.T @ tall)
        span, _ = np.linalg.qr(span)
        _, singular, rows = np.linalg.svd(centred @ span, full_matrices=False)
        values, basis = singular**2 / n, rows @ span.T
    dtype = np.dtype(config.skeleton_dtype)
    retained = rank if config.variance_ratio == 1.0 else _effective_rank(values, config.variance_ratio)
    return Skeleton(mean.astype(dtype), basis[:rank].astype(dtype), min(rank, retained))


def encode_block(block: np.ndarray, config: KakeyaConfig, skeleton: Skeleton | None = None) -> BlockCode:
    """The code of one block ``[n, d]``; a given ``skeleton`` replaces the fitted one.

    Raises:
        ValueError: an option that has no plain twin here.
    """
    _check_options(config)
    skeleton = skeleton or fit_skeleton(block, config)
    basis = skeleton.basis.astype(np.float32)
    coefficients = (block - skeleton.mean.astype(np.float32)) @ basis.T
    coefficients[:, skeleton.retained :] = 0.0

    centers = _fit_centers(coefficients, config).astype(np.float16)
    stored = centers.astype(np.float32)
    products = coefficients @ stored.T
    segment = np.abs(products).argmax(axis=1)
    projection = products[np.arange(len(block)), segment]
    zero = (coefficients**2).sum(axis=1) <= EPS
    segment[zero], projection[zero] = 0, 0.0

    residual = coefficients - projection[:, None] * stored[segment]
    norm = np.linalg.norm(residual, axis=1)
    length = _padded_length(basis)
    padded = np.pad(residual, ((0, 0), (0, length - len(basis))))
    rotated = (padded * smallrng.signs(config.seed, length)) @ _hadamard(length)
    z = rotated / np.where(norm > EPS, norm, 1.0)[:, None].astype(np.float32)
    levels = gaussian_levels(config.bits)
    indices = np.searchsorted((levels[1:] + levels[:-1]) / 2, z)

    outlier_index = outlier_value = None
    if config.outlier_threshold is not None:
        outlier_index, outlier_value = _outliers(z, config)
    return BlockCode(
        codes=pack(indices, config.bits),
        segment=pack(segment, _segment_bits(config)),
        projection=projection.astype(np.float16),
        norm=norm.astype(np.float16),
        centers=centers,
        mean=skeleton.mean,
        basis=skeleton.basis,
        outlier_index=outlier_index,
        outlier_value=outlier_value,
    )


def decode_block(code: BlockCode, config: KakeyaConfig) -> np.ndarray:
    """The float32 reconstruction ``[n, d]`` of one block."""
    mean, basis = code.mean.astype(np.float32), code.basis.astype(np.float32)
    length, n = _padded_length(basis), len(code.norm)
    z = gaussian_levels(config.bits)[unpack(code.codes, config.bits, length)]
    if code.outlier_index is not None and code.outlier_value is not None:
        values = code.outlier_value.astype(np.float32)
        index = unpack(code.outlier_index, _index_bits(length), values.shape[1])
        row, slot = np.nonzero(values)
        z[row, index[row, slot]] = values[row, slot]
    rotated = (z * code.norm.astype(np.float32)[:, None]) @ _hadamard(length)
    residual = (rotated * smallrng.signs(config.seed, length) / length)[:, : len(basis)]
    segment = unpack(code.segment, _segment_bits(config), n)
    along = code.projection.astype(np.float32)[:, None] * code.centers.astype(np.float32)[segment]
    return mean + (along + residual) @ basis


def _check_options(config: KakeyaConfig) -> None:
    defaults = KakeyaConfig()
    for option in ("residual", "weights", "exact_rows", "basis", "centroids"):
        if getattr(config, option) != getattr(defaults, option):
            raise ValueError(f"no numpy baseline of kakeya with {option}={getattr(config, option)!r}")
    if not config.kmeans_centers:
        raise ValueError("no numpy baseline of kakeya with kmeans_centers=0")
    if config.pca == "frequent_directions":
        raise ValueError(f"no numpy baseline of kakeya with pca={config.pca!r}")


def _fit_centers(points: np.ndarray, config: KakeyaConfig) -> np.ndarray:
    """Spherical k-means with signed members; unused centres are zero."""
    norm = np.linalg.norm(points, axis=1)
    usable = points[norm > EPS] / norm[norm > EPS, None]
    centers = np.zeros((config.kmeans_centers, points.shape[1]), np.float32)
    if len(usable) == 0:
        return centers
    used = min(config.kmeans_centers, len(usable))
    centers[0] = usable[smallrng.first_index_table(config.seed, len(points))[len(usable)]]
    nearest = usable @ centers[0]
    for i in range(1, used):
        centers[i] = usable[np.argmax(1.0 - nearest)]
        nearest = np.maximum(nearest, usable @ centers[i])
    previous = np.zeros(len(usable), int)
    for _ in range(config.kmeans_iterations):
        products = usable @ centers[:used].T
        assigned = np.abs(products).argmax(axis=1)
        if (assigned == previous).all():
            break
        previous = assigned
        sign = np.where(products[np.arange(len(usable)), assigned] >= 0, 1.0, -1.0).astype(np.float32)
        members = np.zeros((used, len(usable)), np.float32)
        members[assigned, np.arange(len(usable))] = sign
        sums = members @ usable
        length = np.linalg.norm(sums, axis=1)
        moved = length > EPS
        centers[:used][moved] = sums[moved] / length[moved, None]
    return centers


def _effective_rank(values: np.ndarray, ratio: float) -> int:
    values = np.maximum(values, 0.0)
    if values.sum() <= EPS:
        return 1
    return min(len(values), 1 + int((np.cumsum(values) / values.sum() < ratio).sum()))


def _outliers(z: np.ndarray, config: KakeyaConfig) -> tuple[np.ndarray, np.ndarray]:
    threshold, length = config.outlier_threshold, z.shape[1]
    assert threshold is not None
    slots = min(length, config.outlier_slots or default_slots(length, threshold))
    index = np.argsort(-np.abs(z), axis=1, kind="stable")[:, :slots]
    value = np.take_along_axis(z, index, axis=1)
    used = np.abs(value) > threshold
    return pack(np.where(used, index, 0), _index_bits(length)), np.where(used, value, 0.0).astype(np.float16)


def _hadamard(length: int) -> np.ndarray:
    return scipy.linalg.hadamard(length).astype(np.float32)


def _padded_length(basis: np.ndarray) -> int:
    return 1 << (len(basis) - 1).bit_length()


def _index_bits(length: int) -> int:
    return max(1, (length - 1).bit_length())


def _segment_bits(config: KakeyaConfig) -> int:
    return (config.kmeans_centers - 1).bit_length()

"""Roots of the Fisher matrices of heads: the metrics of the loss that coordinates are made in."""

import numpy as np

from kakeya_jax.typing import Float

FISHER_RIDGE = 0.1
"""Added to a Fisher matrix's diagonal, as a share of it: directions that few sampled gradients had are not free. Chosen
by fitting on one half of training text and judging on the other, which ``calibration.stability`` repeats for every
calibration. A share of each entry rather than of their mean, so that a model some of whose
channels are scaled, and what reads them scaled back, gets the same codes."""

LEAST_SHARE = 1e-9
"""What never moves or never matters counts for this share of what does: maps stay finite, and float64 can tell them."""


def fisher_root(
    fisher: Float[np.ndarray, "h D D"], *, ridge: float = FISHER_RIDGE
) -> tuple[np.ndarray, np.ndarray, float]:
    """A root of the block-diagonal matrix ``F`` of ``h`` heads, with its ridge: ``level H H^T = F + ridge diag F``.

    A head whose matrix is all zero (no output depends on it) gets the metric of plain squared error, with
    ``LEAST_SHARE`` of the weight of the head that matters most.

    Args:
        fisher: float64, finite: one matrix for each head.
        ridge: a share of each diagonal entry, above 0.

    Returns:
        ``H`` and its inverse, ``[h D, h D]``, both block-diagonal, and ``level``, the largest mean diagonal of all
        heads. It is 0 if all heads are dead; then ``H`` is the identity.
    """
    count, dim = fisher.shape[:2]
    means = np.trace(fisher, axis1=1, axis2=2) / dim
    level = max(float(means.max()), 0.0)
    root, inverse = np.zeros((2, count * dim, count * dim))
    for head, (matrix, mean) in enumerate(zip(fisher, means, strict=True)):
        here = slice(head * dim, (head + 1) * dim)
        if mean > 0:
            root[here, here], inverse[here, here] = _of_head(matrix / level, ridge)
        else:
            plain = np.sqrt(LEAST_SHARE) if level > 0 else 1.0
            root[here, here], inverse[here, here] = np.eye(dim) * plain, np.eye(dim) / plain
    return root, inverse, level


def _of_head(fisher: Float[np.ndarray, "D D"], ridge: float) -> tuple[np.ndarray, np.ndarray]:
    diagonal = np.diagonal(fisher)
    scale = np.sqrt(np.maximum(diagonal, LEAST_SHARE * max(float(np.mean(diagonal)), LEAST_SHARE)))
    values, vectors = np.linalg.eigh(0.5 * (fisher + fisher.T) / scale / scale[:, None])
    root = np.sqrt(np.maximum(values, 0.0) + ridge)
    return scale[:, None] * vectors * root, (vectors / root).T / scale

"""Muon for the matrices of a decoder, Adam for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the
nearest semi-orthogonal matrix, found by a Newton-Schulz iteration. ``optax.contrib.muon`` is the same method
with one loop for each matrix; here all matrices of one shape go through the iteration as one batch, which on
a GPU is a few large kernels instead of hundreds of small ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kakeya_jax.typing import Array, Float

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration: the largest slope at zero that keeps singular values around 1."""


class MuonState(NamedTuple):
    """The running mean of the gradients."""

    momentum: optax.Updates


def muon_and_adam(
    *, muon_rate: float, adam_rate: float, weight_decay: float, max_norm: float = 1.0
) -> optax.GradientTransformation:
    """The optimiser of ``pretrain``; Muon for matrices inside layers, Adam for embeddings, norms, biases.

    Args:
        muon_rate: step of the matrices, as the spectral norm of an update.
        adam_rate: step of everything else.
        weight_decay: share of a matrix that a step of size 1 would remove; embeddings, norms and biases do
            not decay.
        max_norm: gradients are clipped to this global norm first.
    """
    matrices = optax.chain(scale_by_muon(), optax.add_decayed_weights(weight_decay), optax.scale(-muon_rate))
    rest = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95), optax.scale(-adam_rate))
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.partition({"matrix": matrices, "rest": rest}, _kinds))


def scale_by_muon(momentum: float = 0.95, iterations: int = 5) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised, and scaled as in ``orthogonalise_all``."""

    def init(params: optax.Params) -> MuonState:
        return MuonState(momentum=jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        mean = jax.tree.map(lambda m, g: momentum * m + (1.0 - momentum) * g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1.0 - momentum) * g, mean, updates)
        return orthogonalise_all(ahead, iterations), MuonState(momentum=mean)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def orthogonalise_all(tree: optax.Updates, iterations: int = 5) -> optax.Updates:
    """Every matrix ``[in, out]`` of a tree, orthogonalised and scaled by ``max(1, out / in) ** 0.5``.

    Matrices of one shape are one batch.
    """
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, leaf in enumerate(leaves):
        groups.setdefault(leaf.shape, []).append(index)
    results: list[Array] = list(leaves)
    for (rows, columns), members in groups.items():
        batch = orthogonalise(jnp.stack([leaves[index] for index in members]), iterations)
        batch = batch * max(1.0, columns / rows) ** 0.5
        for place, index in enumerate(members):
            results[index] = batch[place]
    return jax.tree.unflatten(structure, results)


def orthogonalise(matrices: Float[Array, "B m n"], iterations: int = 5) -> Float[Array, "B m n"]:
    """Matrices with the same singular vectors and singular values of about 1; zero stays zero.

    ``X <- a X + (b A + c A A) X`` with ``A = X X^T``, in bfloat16: the iteration only steers singular values,
    and is insensitive to rounding.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    norm = jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
    x = (x / (norm + 1e-7)).astype(jnp.bfloat16)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).astype(matrices.dtype)


def _kinds(params: optax.Params) -> optax.Params:
    """``"matrix"`` for matrices other than the embedding table and the output projection, else ``"rest"``."""

    def kind(path: tuple[object, ...], leaf: Array) -> str:
        name = jax.tree_util.keystr(path)
        outside = "embed" in name or "head" in name
        return "matrix" if leaf.ndim == 2 and not outside else "rest"

    return jax.tree_util.tree_map_with_path(kind, params)

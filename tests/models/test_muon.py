from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.models.muon import muon_and_adam, orthogonalise, orthogonalise_all, scale_by_muon


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 24), (1, 24, 8)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = jax.random.normal(jax.random.key(0), shape) * 1e-3
    result = orthogonalise(matrices)
    assert result.dtype == jnp.float32
    values = np.linalg.svd(np.asarray(result), compute_uv=False)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = np.linalg.svd(np.asarray(matrices), full_matrices=False)
    exact = left @ right
    cosine = (
        np.sum(exact * result, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2)) / np.linalg.norm(result, axis=(1, 2))
    )
    assert cosine.min() > 0.97


def test_zero_stays_zero() -> None:
    np.testing.assert_array_equal(orthogonalise(jnp.zeros((1, 4, 6))), 0.0)


def test_matrices_of_one_shape_share_a_batch_and_keep_their_places() -> None:
    keys = jax.random.split(jax.random.key(1), 3)
    tree = {
        "a": jax.random.normal(keys[0], (8, 8)),
        "b": jax.random.normal(keys[1], (8, 32)),
        "c": jax.random.normal(keys[2], (8, 8)),
    }
    results: Any = jax.jit(orthogonalise_all)(tree)
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 1.0)):  # sqrt(out / in)
        np.testing.assert_allclose(results[name], scale * orthogonalise(tree[name][None])[0], atol=1e-2)


def test_the_first_step_does_not_depend_on_the_size_of_the_gradient() -> None:
    transform = scale_by_muon()
    gradient = jax.random.normal(jax.random.key(2), (8, 8))
    update: Any = jax.jit(transform.update)
    small, _ = update(gradient * 2.0**-6, transform.init(gradient))
    large, _ = update(gradient * 2.0**6, transform.init(gradient))
    np.testing.assert_allclose(small, large, atol=1e-2)


def test_only_matrices_inside_layers_go_through_muon_and_decay() -> None:
    params: Any = {
        "embed_tokens": {"embedding": jnp.ones((6, 4))},
        "layers_0": {"mlp": {"up_proj": {"kernel": jnp.ones((4, 4))}}, "mlp_norm": {"scale": jnp.ones(4)}},
        "lm_head": {"kernel": jnp.ones((4, 6))},
    }
    optimizer = muon_and_adam(muon_rate=0.5, adam_rate=0.25, weight_decay=0.1)
    update: Any = jax.jit(optimizer.update)
    zero = jax.tree.map(jnp.zeros_like, params)
    decay, _ = update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(decay["layers_0"]["mlp"]["up_proj"]["kernel"], -0.5 * 0.1, rtol=1e-6)
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-2), params)
    step, _ = update(gradient, optimizer.init(params), params)
    # Adam's first step is its rate in every entry; that of Muon on a rank-one matrix is spread over the matrix.
    for leaf in (step["embed_tokens"]["embedding"], step["layers_0"]["mlp_norm"]["scale"], step["lm_head"]["kernel"]):
        np.testing.assert_allclose(leaf, -0.25, rtol=1e-4)
    matrix = step["layers_0"]["mlp"]["up_proj"]["kernel"] + 0.5 * 0.1
    np.testing.assert_allclose(np.linalg.norm(matrix, 2), 0.5, rtol=0.35)

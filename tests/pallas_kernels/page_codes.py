"""Codes of pages by two encoders, or on two devices, side by side."""

from typing import Any

import jax
import numpy as np

from kakeya_jax.codecs.turboquant import TurboQuant, TurboQuantCode
from kakeya_jax.stream import encode_blocks


def codes_on_gpu_and_cpu(codec: Any, pages: jax.Array) -> tuple[Any, Any]:
    """Codes that either finds, as numpy arrays."""
    found = []
    for device in (jax.devices("gpu")[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            here = jax.device_put((codec, pages), device)
            found.append(jax.tree.map(np.asarray, jax.jit(encode_blocks)(*here)))
    return found[0], found[1]


def assert_same_vectors(codec: TurboQuant, found: TurboQuantCode, expected: TurboQuantCode) -> None:
    """All but one code in ten thousand, which roundings at ties may change; and scales by a unit of their last place.

    A scale belongs to the codes of its vector (norm correction), so it is compared where these are the same.
    """
    mine, its = (_indices(codec, each) for each in (found, expected))
    different = mine != its
    assert different.sum() <= max(1, 1e-4 * different.size)
    scales = [np.asarray(each.scale) for each in (found, expected)]
    assert scales[0].shape == scales[1].shape == different.shape[:-1]
    same = ~different.any(axis=-1)
    near, far = (np.where(same, each, 0.0).astype(np.float32) for each in scales)
    np.testing.assert_allclose(near, far, rtol=2.0**-10, atol=2.0**-24)
    assert np.sum(near != far) <= max(1, 5e-4 * near.size)


def _indices(codec: TurboQuant, code: TurboQuantCode) -> np.ndarray:
    indices = codec.indices_of
    for _ in range(3):  # rows, heads, pages
        indices = jax.vmap(indices)
    with jax.default_device(jax.devices("cpu")[0]):
        return np.asarray(indices(jax.tree.map(np.asarray, code)))


def assert_same_codes(found: Any, expected: Any) -> None:
    """But for one in two thousand, which roundings at ties may change; a float16 by a unit of its last place."""
    for mine, its in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.shape == its.shape
        assert mine.dtype == its.dtype
        mine, its = np.asarray(mine), np.asarray(its)
        allowed = 5e-4 * mine.size
        if mine.dtype == np.float16:
            np.testing.assert_allclose(mine.astype(np.float32), its.astype(np.float32), rtol=2.0**-10, atol=2.0**-24)
            allowed = max(allowed, 1)
        assert np.sum(mine != its) <= allowed


def assert_codes_of_a_gpu_are_those_of_a_cpu(codec: Any, pages: jax.Array) -> None:
    assert_same_codes(*codes_on_gpu_and_cpu(codec, pages))

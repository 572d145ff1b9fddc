"""Codes of pages by two encoders, or on two devices, side by side."""

from typing import Any

import jax
import numpy as np

from kakeya_jax.stream import encode_blocks


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
    found = []
    for device in (jax.devices("cpu")[0], jax.devices("gpu")[0]):
        with jax.default_device(device):
            here = jax.device_put((codec, pages), device)
            found.append(jax.tree.map(np.asarray, jax.jit(encode_blocks)(*here)))
    assert_same_codes(found[1], found[0])

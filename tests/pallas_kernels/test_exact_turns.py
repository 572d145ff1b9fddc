"""Exact keys turned where they are read: in an emulator, against numbers of 64 bits."""

import math
from typing import Any

import numpy as np
import pytest

from kakeya_jax.pallas_kernels.attention import emulated_ops
from kakeya_jax.pallas_kernels.attention.exact_turns import turned, within_half_a_turn
from kakeya_jax.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling

ROPES = [
    Rope(head_dim=128, theta=1e4),
    Rope(head_dim=128, theta=5e5, scaling=LinearScaling(factor=3.0)),
    Rope(
        head_dim=128,
        theta=5e5,
        scaling=Llama3Scaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
        ),
    ),
    Rope(head_dim=128, theta=1e6, scaling=YarnScaling(factor=4.0, original_max_position_embeddings=32768)),
]


def lanes(values: Any, dtype: Any) -> np.ndarray:
    """A register of one warp."""
    return np.broadcast_to(np.asarray(values, dtype), (1, 32)).copy()


@pytest.mark.parametrize("rope", ROPES, ids=["plain", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("first", [0, 4096 - 16, 131072 - 32, 1 << 20])
def test_keys_are_turned_as_the_reference_turns_them(rope: Rope, first: int):
    """Its angle is a float; of that float, cosine and sine are exact to the last places."""
    rng = np.random.default_rng(first)
    positions = first + np.arange(32)
    key = rng.standard_normal((128, 32)).astype(np.float32)
    with emulated_ops.launch(1, 1):
        frequencies = [lanes(each, np.float32) for each in rope.frequencies]
        found = turned(
            emulated_ops, [lanes(each, np.float32) for each in key], frequencies, lanes(positions, np.uint32)
        )
    angle = (positions.astype(np.float32) * rope.frequencies[:, None]).astype(np.float64)
    near, far = key[:64].astype(np.float64), key[64:].astype(np.float64)
    expected = [near * np.cos(angle) - far * np.sin(angle), far * np.cos(angle) + near * np.sin(angle)]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=3e-6, rtol=0)


@pytest.mark.parametrize("size", [4.0, 1e3, 1.4e5, 1e7])
def test_angles_lose_whole_turns_and_nothing_else(size: float):
    angles = np.linspace(0, size, 32, dtype=np.float32)
    with emulated_ops.launch(1, 1):
        found = within_half_a_turn(emulated_ops, lanes(angles, np.float32))[0].astype(np.float64)
    lost = (angles.astype(np.float64) - found) / (2 * math.pi)
    np.testing.assert_allclose(2 * math.pi * (lost - np.rint(lost)), 0, atol=2.0**-22)
    assert np.max(np.abs(found)) < math.pi + 0.5

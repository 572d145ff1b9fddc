"""Cosines and sines of the rotary embedding in the order in which ``kakeya_program`` reads them, and its queries."""

import numpy as np

from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS, TILE
from kakeya_jax.pallas_kernels.attention.kakeya_shape import DIM, STEPS
from kakeya_jax.typing import Array, Float, Int


def channels() -> Int[np.ndarray, "steps columns 2"]:
    """Two channels of a step and a column of lanes; their partners are ``DIM / 2`` further.

    Eight channels are one product's columns: column ``2 t + e`` is channel ``32 b + 8 t + 2 w + e`` of step
    ``4 b + w``, so that four neighbouring words of a basis vector belong to one lane.
    """
    step, column, one = np.ogrid[:STEPS, :4, :2]
    return 32 * (step // 4) + 8 * column + 2 * (step % 4) + one


def token_angles(frequencies: Float[np.ndarray, " half"]) -> Int[np.ndarray, " words"]:
    """int32: for each step, product and lane, packed float16 cosines and sines of its two rows and two channels."""
    lane = np.arange(32)
    row = lane // 4
    product, half = np.ogrid[:PRODUCTS, :2]
    token = 16 * (row // 2)[None, :, None] + 4 * product[..., None] + 2 * (row % 2)[None, :, None] + half[:, None]
    pair = channels()[:, lane % 4]  # [steps, lane, 2]
    angle = token[None, ..., None].astype(np.float64) * frequencies[pair][:, None, :, None]
    both = np.stack([np.cos(angle), np.sin(angle)], axis=-2).astype(np.float16)  # [steps, product, lane, half, 2, 2]
    return np.ascontiguousarray(both).view(np.int32).reshape(-1)


def tile_angles(frequencies: Float[np.ndarray, " half"], tiles: int, first: int) -> Float[np.ndarray, "tiles words"]:
    """float32: for each tile, step and column two cosines and two sines of its first position's angles."""
    position = first + TILE * np.arange(tiles, dtype=np.float64)
    angle = position[:, None, None, None] * frequencies[channels()]
    both = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)
    return both.reshape(tiles, DIM)


def by_step(query: Float[Array, "N rows D"]) -> Float[Array, "N rows D"]:
    """Queries with each step's and column's four channels side by side."""
    order = channels()
    return query[..., np.concatenate([order, order + DIM // 2], axis=-1).reshape(-1)]

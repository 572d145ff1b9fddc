"""From stored channels to codes and back: each channel by itself, or along a trellis through all of a token.

Channels come as ``Layout.stored`` orders them, in units of the token's scale; a list of codes or levels has an array
for each used width, widest first. Channels of 8 bits are uniform. Others have Lloyd-Max levels (``scalar``), or levels
of ``trellis_levels``: then a trellis runs through the channels of a unit, whatever their widths, and begins anew in
each token. Channels of 8 bits, and those that are not stored, are no part of it. It runs from the last channel to the
first: where it begins it has few paths to choose from, and the last channels cost least.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.klt_code_tables import HIGHEST, LOWEST, code_table, edge_table
from kakeya_jax.klt_layout import Layout, Quantizer, quantizer_bytes, quantizer_levels
from kakeya_jax.lloyd_max import midpoints
from kakeya_jax.trellis_levels import CODE, nearest_in_subsets, trellis_levels
from kakeya_jax.typing import Array, Float, Int, Shaped

_, _UNIFORM_STEP = quantizer_bytes(8)

_LEAST_SHARE = 2.0**-20
"""Of the weight of a unit's dearest channel, on a trellis: what costs nothing still stays near its value."""


def quantize(
    layout: Layout, quantizer: Quantizer, values: Float[Array, "n stored size"], weights: Float[Array, "stored size"]
) -> list[Int[Array, "n groups size"]]:
    """The codes of every width.

    Args:
        layout: widths of all groups.
        quantizer: which.
        values: of about unit deviation.
        weights: what a unit of squared error costs in each channel, at any scale; scalar quantisers need none.
    """
    alone = _alone(layout, quantizer)
    codes = [_nearest(values[:, first:end], width) for width, first, end in layout.ranges[:alone]]
    if alone < len(layout.ranges):
        first = layout.ranges[alone][1]
        codes += _quantize_along(layout, alone, values[:, first:], weights[first:])
    return codes


def dequantize(
    layout: Layout, quantizer: Quantizer, codes: list[Int[Array, "n groups size"]]
) -> list[Float[Array, "n groups size"]]:
    """The levels of every width that ``quantize``'s codes stand for."""
    alone = _alone(layout, quantizer)
    levels = [_level(each, width) for each, width in zip(codes[:alone], layout.used_widths, strict=False)]
    if alone < len(codes):
        path = _path(layout, alone, codes[0].shape[-1])
        branches = jnp.concatenate([each & 1 for each in codes[alone:]], axis=1)
        rows = path.back(CODE.subsets(path.along(branches.reshape(len(branches), -1).T)))
        subsets = rows.T.reshape(branches.shape)
        for (width, first, end), each in zip(_ranges_along(layout, alone), codes[alone:], strict=True):
            index = 4 * (each >> 1) + subsets[:, first:end]
            levels.append(jnp.asarray(trellis_levels(width)).at[index].get(mode="promise_in_bounds"))
    return levels


def _alone(layout: Layout, quantizer: Quantizer) -> int:
    """How many of the used widths, the first of them, are coded each channel by itself."""
    return len(layout.used_widths) if quantizer == "scalar" else layout.used_widths.count(8)


def _ranges_along(layout: Layout, alone: int) -> list[tuple[int, int, int]]:
    """The ``Layout.ranges`` of a trellis's widths, counted from its first group."""
    offset = layout.ranges[alone][1]
    return [(width, first - offset, end - offset) for width, first, end in layout.ranges[alone:]]


def _quantize_along(
    layout: Layout, alone: int, values: Float[Array, "n coded size"], weights: Float[Array, "coded size"]
) -> list[Int[Array, "n groups size"]]:
    """Codes on the path of least weighted error: the branch bit, and twice the place in the subset."""
    size = values.shape[-1]
    ranges, path = _ranges_along(layout, alone), _path(layout, alone, size)
    rows = values.reshape(len(values), -1).T  # a channel each, for all tokens at once
    all_places, all_errors = [], []
    for width, first, end in ranges:
        some = rows[first * size : end * size]
        places = nearest_in_subsets(some, trellis_levels(width))
        levels = jnp.asarray(trellis_levels(width))[4 * places + np.arange(4)[:, None, None]]
        all_places.append(places)
        all_errors.append(jnp.square(some - levels))
    along = path.along(weights.reshape(-1, 1))
    share = along / jnp.maximum(jnp.max(along, axis=0), np.finfo(np.float32).tiny)
    cost = path.along(jnp.concatenate(all_errors, axis=1)) * jnp.maximum(share, _LEAST_SHARE)
    branches = CODE.best_branches(jnp.moveaxis(cost, 0, 1))
    places = jax.lax.select_n(path.back(CODE.subsets(branches)), *jnp.concatenate(all_places, axis=1))
    codes = (path.back(branches) + 2 * places).T.reshape(values.shape)
    return [codes[:, first:end] for _, first, end in ranges]


class _Path(NamedTuple):
    """Where a trellis goes.

    Attributes:
        steps: int32 ``[T, U]``: the channel at each step in each unit; one past the last where a unit has no more.
        place: int32 ``[channels]``: where each channel is in the flat ``steps``.
    """

    steps: np.ndarray
    place: np.ndarray

    def along(self, channels: Shaped[Array, "*lead channels n"]) -> Shaped[Array, "*lead T U n"]:
        """Step after step; zeros where a unit has no more."""
        end = jnp.zeros((*channels.shape[:-2], 1, channels.shape[-1]), channels.dtype)
        return jnp.concatenate([channels, end], axis=-2)[..., self.steps, :]

    def back(self, steps: Shaped[Array, "T U n"]) -> Shaped[Array, "channels n"]:
        """The inverse."""
        return steps.reshape(-1, steps.shape[-1])[self.place]


@functools.lru_cache(maxsize=256)
def _path(layout: Layout, alone: int, size: int) -> _Path:
    flat = layout.stored[layout.ranges[alone][1] :]
    groups_of = [np.flatnonzero(flat // layout.groups_per_head == unit) for unit in range(layout.num_heads)]
    ordered = [groups[np.argsort(flat[groups])] for groups in groups_of]
    runs = [(groups[:, None] * size + np.arange(size)).reshape(-1)[::-1] for groups in ordered]
    steps = np.full((max(map(len, runs)), len(runs)), len(flat) * size, np.int32)
    place = np.zeros(len(flat) * size, np.int32)
    for unit, run in enumerate(runs):
        steps[: len(run), unit] = run
        place[run] = np.arange(len(run)) * len(runs) + unit
    return _Path(steps, place)


def _nearest(values: Float[Array, "*shape"], width: int) -> Int[Array, "*shape"]:
    """The codes of the nearest levels: how many midpoints are below, looked up or counted, as is faster."""
    if width == 8:
        return jnp.clip(jnp.round(values / _UNIFORM_STEP + 127.5), 0, 255).astype(jnp.int32)
    looked_up, counted = (functools.partial(each, width=width) for each in (_looked_up, _counted))
    if width > 4:  # a CPU, too, counts many midpoints for longer than it looks up
        return looked_up(values)
    if jax.default_backend() != "gpu":
        return counted(values)
    # Of few midpoints, XLA makes a reduction that leaves most of a GPU's threads idle.
    return jax.lax.platform_dependent(values, cuda=looked_up, default=counted)


def _looked_up(values: Float[Array, "*shape"], width: int) -> Int[Array, "*shape"]:
    """The midpoints below the nearest whole number of half units, and the one that may be there."""
    nearest = jnp.round(values * (2.0 / quantizer_bytes(width)[1]))
    index = jnp.clip(nearest, LOWEST, HIGHEST).astype(jnp.int32) - LOWEST
    below = jnp.asarray(code_table(width)).at[index].get(mode="promise_in_bounds")
    edge = jnp.asarray(edge_table(width)).at[index].get(mode="promise_in_bounds")
    return below + (values > edge).astype(jnp.int32)


def _counted(values: Float[Array, "*shape"], width: int) -> Int[Array, "*shape"]:
    """The midpoints below."""
    # A fused reduction; unrolled comparisons would cost compile time in every layer.
    return jnp.sum(values[..., None] > midpoints(quantizer_levels(width)), axis=-1, dtype=jnp.int32)


def _level(codes: Int[Array, "*shape"], width: int) -> Float[Array, "*shape"]:
    if width == 8:
        return (codes.astype(jnp.float32) - 127.5) * _UNIFORM_STEP
    return jnp.asarray(quantizer_levels(width)).at[codes].get(mode="promise_in_bounds")

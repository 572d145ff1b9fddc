"""Codes of stored channels: a trellis goes through each unit's, the last one first, and finds the best codes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.klt_layout import (
    QUALITY_WIDTHS,
    Layout,
    Quantizer,
    allocate,
    decoder_gain,
    distortion,
    loss,
    quantizer_levels,
)
from kakeya_jax.klt_quantizers import _counted, _looked_up, dequantize, quantize
from kakeya_jax.klt_words import PageWords
from kakeya_jax.lloyd_max import midpoints
from kakeya_jax.trellis_levels import trellis_levels

PROMISED = {1: 0.86, 2: 0.75, 3: 0.70, 4: 0.67, 5: 0.66, 6: 0.63}
"""Squared error of trellis-coded channels as a share of that of Lloyd-Max ones, at most."""

LAYOUT = Layout(((8, 2, 0, 1), (0, 1, 1, 3), (0, 0, 8, 0)))
"""Of three units: one with and one without a channel of 8 bits, and one that no trellis goes through."""

SIZE, TOKENS = 2, 4


def channels(layout: Layout, unit: int) -> list[tuple[int, int, int]]:
    """``(stored position, place in its group, width)`` of a unit's trellis, step after step."""
    widths = layout.widths[unit]
    return [
        (int(layout.position_of[unit * layout.groups_per_head + group]), place, width)
        for group, width in enumerate(widths)
        for place in range(SIZE)
        if 0 < width < 8
    ][::-1]


def decoded_by_hand(codes: list[int], widths: list[int]) -> list[float]:
    """Levels of one unit of one token, with a state that is carried from channel to channel."""
    last, levels = (0, 0, 0), []
    for code, width in zip(codes, widths, strict=True):
        bit, place = code % 2, code // 2
        subset = last[1] + 2 * (bit ^ last[0] ^ last[2])
        levels.append(float(trellis_levels(width)[4 * place + subset]))
        last = (bit, *last[:2])
    return levels


def test_codes_are_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    stored = len(LAYOUT.stored)
    values = rng.standard_normal((TOKENS, stored, SIZE)).astype(np.float32)
    weights = rng.uniform(0.2, 5.0, (stored, SIZE)).astype(np.float32)
    codes = quantize(LAYOUT, "trellis", jnp.asarray(values), jnp.asarray(weights))
    for each, (width, first, end) in zip(codes, LAYOUT.ranges, strict=True):
        assert each.shape == (TOKENS, end - first, SIZE)
        assert int(jnp.min(each)) >= 0
        assert int(jnp.max(each)) < 2**width
    levels = np.concatenate(dequantize(LAYOUT, "trellis", codes), axis=1)
    flat = np.concatenate(codes, axis=1)
    for unit, token in itertools.product(range(2), range(TOKENS)):
        path = channels(LAYOUT, unit)
        widths = [width for *_, width in path]
        own = [int(flat[token, position, place]) for position, place, _ in path]
        by_hand = decoded_by_hand(own, widths)
        np.testing.assert_array_equal([levels[token, position, place] for position, place, _ in path], by_hand)

        def cost(found: list[float], path: list = path, token: int = token) -> float:
            return sum(
                float(weights[position, place]) * (float(values[token, position, place]) - level) ** 2
                for (position, place, _), level in zip(path, found, strict=True)
            )

        every = itertools.product(*(range(2**width) for width in widths))
        best = min(cost(decoded_by_hand(list(codes), widths)) for codes in every)
        assert cost(by_hand) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("quantizer", ["scalar", "trellis"])
def test_channels_of_eight_bits_are_uniform_either_way(quantizer: Quantizer) -> None:
    values = jnp.linspace(-5, 5, 64).reshape(16, 2, SIZE)
    codes = quantize(Layout(((8, 8),)), quantizer, values, jnp.ones((2, SIZE)))
    (levels,) = dequantize(Layout(((8, 8),)), quantizer, codes)
    inside = np.abs(values) < 4.4
    assert np.abs(levels - values)[inside].max() <= 4.4 / 255 * 1.001


@pytest.mark.parametrize("quantizer", ["scalar", "trellis"])
def test_nothing_stored_is_no_codes(quantizer: Quantizer) -> None:
    layout = Layout(((0, 0),))
    assert quantize(layout, quantizer, jnp.zeros((4, 0, SIZE)), jnp.zeros((0, SIZE))) == []
    assert dequantize(layout, quantizer, []) == []


@pytest.mark.parametrize("width", [width for width in QUALITY_WIDTHS if width < 8])
def test_a_trellis_keeps_its_promise_in_the_same_bytes(width: int) -> None:
    layout, size = Layout(((width,) * 8,)), 16
    draws = jax.random.normal(jax.random.key(width), (1024, 8, size))
    errors = []
    for quantizer in ("scalar", "trellis"):
        codes = quantize(layout, quantizer, draws, jnp.ones((8, size)))
        words = PageWords(layout=layout, stream="key", tokens=1024, size=size)
        packed = words.pack(codes)
        assert packed.nbytes == words.nbytes == 1024 * 8 * size * width // 8
        (levels,) = dequantize(layout, quantizer, words.unpack(packed))
        errors.append(float(jnp.mean(jnp.square(draws - levels))))
        assert errors[-1] == pytest.approx(distortion(width, quantizer), rel=0.03)
    assert errors[1] < PROMISED[width] * errors[0]


def test_weights_count_as_shares() -> None:
    """However small they are; a channel whose weight is 0 leaves the path to the others."""
    layout = Layout(((1, 1, 1, 1),))
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.standard_normal((256, 4, SIZE)), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.5, 2.0, (4, SIZE)), jnp.float32).at[1].set(0.0)

    def quantized(weights: jax.Array) -> jax.Array:
        (codes,) = quantize(layout, "trellis", values, weights)
        return codes

    def cost(weights: jax.Array) -> float:
        (levels,) = dequantize(layout, "trellis", [quantized(weights)])
        return float(jnp.sum(usual * jnp.square(levels - values)))

    usual = weights
    for scale in (2.0**-100, 2.0**100):
        np.testing.assert_array_equal(quantized(scale * weights), quantized(weights))
    assert cost(weights) < 0.98 * cost(jnp.ones_like(weights))
    assert np.isfinite(cost(0.0 * weights))


def test_allocation_knows_the_trellis_s_error() -> None:
    assert distortion(0, "trellis") == 1.0
    assert distortion(8, "trellis") == distortion(8)
    assert loss(0, 3.0, "trellis") == 3.0
    for width in (1, 2, 3, 4, 5, 6):
        assert distortion(width, "trellis") < PROMISED[width] * distortion(width)
        assert loss(width, 3.0, "trellis") < loss(width, 3.0)
        assert decoder_gain(width, "trellis") == (1 - distortion(width, "trellis")) ** -0.5
    groups = [np.geomspace(1.0, 1e-4, 32).reshape(2, 16)]
    losses: dict[tuple[Quantizer, Quantizer], float] = {}
    for chosen_for, counted in itertools.product(("scalar", "trellis"), repeat=2):
        (widths,) = allocate(groups, [3.0], 2.0, QUALITY_WIDTHS, chosen_for)
        assert widths.sum() == 64
        losses[chosen_for, counted] = sum(
            float(variance) * loss(int(width), 3.0, counted)
            for variance, width in zip(groups[0].ravel(), widths.ravel(), strict=True)
        )
    assert losses["trellis", "trellis"] < losses["scalar", "trellis"] < losses["scalar", "scalar"]
    assert losses["scalar", "scalar"] < losses["trellis", "scalar"]


def test_scalar_codes_are_the_nearest_levels() -> None:
    values = np.random.default_rng(2).standard_normal((64, 2, SIZE)).astype(np.float32)
    (codes,) = quantize(Layout(((3, 3),)), "scalar", jnp.asarray(values), jnp.ones((2, SIZE)))
    np.testing.assert_array_equal(codes, np.abs(values[..., None] - quantizer_levels(3)).argmin(axis=-1))


@pytest.mark.parametrize("width", [width for width in QUALITY_WIDTHS if width < 8])
def test_scalar_codes_count_the_midpoints_below(width: int) -> None:
    """However many there are, on them and far outside."""
    edges = np.asarray(midpoints(quantizer_levels(width)), np.float32)
    drawn = 2 * np.random.default_rng(width).standard_normal(2000).astype(np.float32)
    values = np.concatenate([drawn, edges, np.array([np.inf, -np.inf, 1e9, 0.0], np.float32)])
    values = np.pad(values, (0, -len(values) % SIZE))
    codes = quantize(Layout(((width,),)), "scalar", jnp.asarray(values.reshape(-1, 1, SIZE)), jnp.ones((1, SIZE)))
    np.testing.assert_array_equal(np.asarray(codes[0]).reshape(-1), np.sum(values[:, None] > edges, axis=1))


@pytest.mark.parametrize("width", [width for width in QUALITY_WIDTHS if width < 8])
def test_codes_looked_up_are_codes_counted(width: int) -> None:
    edges = np.asarray(midpoints(quantizer_levels(width)), np.float32)
    near = np.concatenate([np.nextafter(edges, np.float32(sign)) for sign in (-9, 9)])
    values = jnp.concatenate([jnp.linspace(-9, 9, 4001), edges, near])
    np.testing.assert_array_equal(_looked_up(values, width), _counted(values, width))

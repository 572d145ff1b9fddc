"""Coordinates, the bits that channels get, and how a recipe's streams share them."""

import dataclasses
import itertools

import numpy as np
import pytest

from kakeya_jax import klt_layout
from kakeya_jax.calibration import klt_fit, stability
from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.fisher_root import FISHER_RIDGE
from kakeya_jax.calibration.tables import window_note
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import StreamName

HEADS, DIM, PAGE = 2, 16, 16
FREQUENCIES = (10000.0 ** (-np.arange(DIM // 2) / (DIM // 2))).astype(np.float32)
FAST = KltConfig(block_size=PAGE)
QUALITY = KltConfig(block_size=PAGE, form="quality")


def random_moments(seed: int, dim: int = DIM) -> np.ndarray:
    """``[K, D, D]`` with eigenvalues over three decades."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(HEADS, dim, dim)))[0]
    return np.einsum("kde,e,kfe->kdf", axes, np.geomspace(1, 1e-3, dim), axes)


MEAN = np.random.default_rng(0).normal(size=(HEADS, DIM))
COVARIANCE, FISHER = random_moments(1), 0.01 * random_moments(2)


def rotation(distance: int) -> np.ndarray:
    """``R_d``: channel ``i`` turns with channel ``i + D / 2``."""
    angle = distance * FREQUENCIES.astype(np.float64)
    cos, sin = np.diag(np.cos(angle)), np.diag(np.sin(angle))
    return np.block([[cos, -sin], [sin, cos]])


def over_page(matrices: np.ndarray) -> np.ndarray:
    return np.mean([rotation(d) @ matrices @ rotation(d).T for d in range(PAGE)], axis=0)


def test_moments_over_a_page_are_means_over_rotations():
    np.testing.assert_allclose(
        klt_fit.second_moment_over_page(COVARIANCE, FREQUENCIES, PAGE), over_page(COVARIANCE), atol=1e-12
    )


@pytest.mark.parametrize(("config", "stream"), [(QUALITY, "key"), (FAST, "value"), (FAST, "key")], ids=str)
def test_coordinates_are_uncorrelated_and_their_metric_plain(config: KltConfig, stream: StreamName):
    tables = klt_fit.coordinates(config, stream, MEAN, COVARIANCE, FISHER, FREQUENCIES)
    analysis, synthesis = (tables[name].astype(np.float64) for name in ("analysis", "synthesis"))
    covariance, fisher = COVARIANCE, FISHER
    if config.form == "fast" and stream == "key":
        covariance, fisher = over_page(COVARIANCE), over_page(FISHER)  # about a mean that turns with the vectors
    fisher = fisher * (1 + FISHER_RIDGE * np.eye(DIM))
    np.testing.assert_allclose(tables["mean"], MEAN, atol=1e-6)
    np.testing.assert_allclose(analysis @ synthesis, np.broadcast_to(np.eye(DIM), analysis.shape), atol=2e-4)
    unit = np.swapaxes(analysis, 1, 2) @ covariance @ analysis
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(DIM), unit.shape), atol=1e-3)
    for head in range(HEADS):
        variances = tables["variances"][head].astype(np.float64)
        metric = synthesis[head] @ fisher[head] @ synthesis[head].T
        scale = np.sqrt(variances[:, None] * variances)
        np.testing.assert_allclose(metric / scale, np.eye(DIM), atol=2e-3)
        assert (np.diff(variances) <= 0).all()
        assert variances.sum() == pytest.approx(np.trace(fisher[head] @ covariance[head]), rel=1e-5)


def test_scaled_channels_that_are_read_scaled_back_change_nothing():
    """Any model can be rewritten so; real ones have channels 50 times as large as others."""
    scale = np.where(np.arange(DIM) % 5 == 3, 64.0, 1.0)
    scaled = klt_fit.coordinates(
        FAST,
        "value",
        MEAN * scale,
        COVARIANCE * scale * scale[:, None],
        FISHER / scale / scale[:, None],
        FREQUENCIES,
    )
    plain = klt_fit.coordinates(FAST, "value", MEAN, COVARIANCE, FISHER, FREQUENCIES)
    np.testing.assert_allclose(scaled["variances"], plain["variances"], rtol=1e-4)


def test_broken_statistics_are_refused():
    with pytest.raises(ValueError, match="the calibrated fisher of the values is not finite; calibrate again"):
        klt_fit.coordinates(FAST, "value", MEAN, COVARIANCE, FISHER * np.nan, FREQUENCIES)


NOTHING = np.zeros_like(COVARIANCE)


@pytest.mark.parametrize(
    ("covariance", "fisher"), [(NOTHING, NOTHING), (NOTHING, FISHER), (COVARIANCE, NOTHING)], ids=["both", "S", "F"]
)
@pytest.mark.parametrize("stream", ["key", "value"])
def test_a_dead_stream_has_sensible_tables_and_takes_no_bits(
    stream: StreamName, covariance: np.ndarray, fisher: np.ndarray
):
    tables = klt_fit.coordinates(FAST, stream, MEAN, covariance, fisher, FREQUENCIES)
    assert all(np.isfinite(table).all() for table in tables.values())
    np.testing.assert_allclose(tables["analysis"] @ tables["synthesis"], [np.eye(DIM)] * HEADS, atol=1e-3)
    assert not tables["variances"].any()
    assert np.abs(tables["synthesis"]).max() < 10  # a rounding error of a code moves no channel far
    live = np.ones((HEADS, DIM), np.float32)
    dead, spent = klt_fit.layouts(dataclasses.replace(FAST, bits=7.0), [(stream, tables["variances"]), (stream, live)])
    assert (dead == 0).all()
    assert (spent == 8).all()


def test_a_dead_head_of_a_pair_leaves_the_other_as_it_was():
    pair = dataclasses.replace(QUALITY, heads_together=2)
    joint = np.einsum("ae,be->ab", *(2 * [np.random.default_rng(3).normal(size=(HEADS * DIM, 40))])) / 40
    alive = np.stack([FISHER[0], NOTHING[1]])
    tables = klt_fit.coordinates(pair, "value", MEAN, joint, alive, FREQUENCIES)
    apart = np.stack([joint[:DIM, :DIM], joint[DIM:, DIM:]])
    alone = klt_fit.coordinates(QUALITY, "value", MEAN, apart, FISHER, FREQUENCIES)
    np.testing.assert_allclose(tables["variances"][0, :DIM], alone["variances"][0], rtol=1e-4)
    assert tables["variances"][0, DIM:].sum() < 1e-6 * tables["variances"].sum()
    np.testing.assert_allclose(tables["analysis"][0] @ tables["synthesis"][0], np.eye(2 * DIM), atol=1e-3)
    # Of the dead head decoding gives what the live one tells of it.
    x = np.random.default_rng(4).multivariate_normal(np.zeros(2 * DIM), joint, 400)
    known = (x @ tables["analysis"][0])[:, :DIM] @ tables["synthesis"][0, :DIM]
    best = x[:, :DIM] @ np.linalg.solve(apart[0], joint[:DIM, DIM:])
    np.testing.assert_allclose(known[:, DIM:], best, atol=1e-3 * np.abs(best).max())


def test_moments_of_a_text_that_nothing_of_is_coded_are_compared(calibration: Calibration):
    """As a window longer than the passages gives: every Fisher matrix is zero."""
    dead = {
        where: {name: 0 * each if name.startswith("fisher") else each for name, each in found.items()}
        for where, found in calibration.statistics.items()
    }
    rows = stability.compare(dead, dead, calibration.exact, FREQUENCIES.tolist())
    assert [(row["own"], row["other"], row["ratio"]) for row in rows] == [(0.0, 0.0, 1.0)] * 4


def test_heads_together_find_what_they_share():
    joint = np.einsum("ae,be->ab", *(2 * [np.random.default_rng(3).normal(size=(HEADS * DIM, 40))])) / 40
    apart = np.stack([joint[:DIM, :DIM], joint[DIM:, DIM:]])
    pair = dataclasses.replace(QUALITY, heads_together=2)
    together = klt_fit.coordinates(pair, "value", MEAN, joint, FISHER, FREQUENCIES)
    alone = klt_fit.coordinates(QUALITY, "value", MEAN, apart, FISHER, FREQUENCIES)
    assert together["analysis"].shape == (1, 2 * DIM, 2 * DIM)
    np.testing.assert_allclose(together["analysis"] @ together["synthesis"], np.eye(2 * DIM)[None], atol=1e-3)
    assert together["variances"].sum() == pytest.approx(alone["variances"].sum(), rel=1e-5)
    # What is shared moves variance into fewer channels: the product of all is smaller (Hadamard's inequality).
    assert np.log(together["variances"]).sum() < np.log(alone["variances"]).sum() - 0.1
    uncorrelated = np.zeros_like(joint)
    uncorrelated[:DIM, :DIM], uncorrelated[DIM:, DIM:] = apart
    same = klt_fit.coordinates(pair, "value", MEAN, uncorrelated, FISHER, FREQUENCIES)
    np.testing.assert_allclose(np.sort(same["variances"], axis=None), np.sort(alone["variances"], axis=None), rtol=1e-4)


def loss_of(widths: np.ndarray, variances: np.ndarray, coherence: float) -> float:
    return sum(
        v * klt_layout.loss(int(w), coherence) for w, v in zip(widths.reshape(-1), variances.reshape(-1), strict=True)
    )


@pytest.mark.parametrize("widths", [klt_layout.FAST_WIDTHS, (1, 2, 3, 8)], ids=str)
def test_greedy_allocation_is_the_best_one(widths: tuple[int, ...]):
    """At the budgets of its steps, against every possible allocation of two streams of two groups."""
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(6):
        variances = [np.exp(rng.normal(scale=2.5, size=(1, 2))) for _ in range(2)]
        coherences = [2.0, 4.0]
        possible = [
            (
                sum(each),
                sum(
                    loss_of(np.array(part), v, c)
                    for part, v, c in zip((each[:2], each[2:]), variances, coherences, strict=True)
                ),
            )
            for each in itertools.product((0, *widths), repeat=4)
        ]
        for price in np.exp(rng.uniform(-9, 3, 12)):
            # The best allocation at a price per bit is the best one for the bits that it happens to take.
            bits, loss = min(possible, key=lambda each, price=price: each[1] + price * each[0])
            found = klt_layout.allocate(variances, coherences, bits / 4, widths)
            assert sum(int(each.sum()) for each in found) == bits
            got = sum(loss_of(each, v, c) for each, v, c in zip(found, variances, coherences, strict=True))
            assert got == pytest.approx(loss, rel=1e-9)
            compared += 0 < bits < 4 * max(widths)
    assert compared > 20


def test_more_bits_are_never_worse_and_are_spent():
    rng = np.random.default_rng(1)
    variances = [np.exp(rng.normal(scale=3, size=(2, 8))) for _ in range(3)]
    coherences = [2.0, 4.0, 3.0]
    losses = []
    for bits in np.arange(0, 385, 2) / 48:
        found = klt_layout.allocate(variances, coherences, bits, klt_layout.FAST_WIDTHS)
        left = bits * 48 - sum(int(each.sum()) for each in found)
        assert 0 <= left < 2  # every step is of two bits
        losses.append(sum(loss_of(each, v, c) for each, v, c in zip(found, variances, coherences, strict=True)))
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    with pytest.raises(ValueError, match="between 0 and 8"):
        klt_layout.allocate(variances, coherences, 9.0, klt_layout.FAST_WIDTHS)


def test_shared_layouts_give_all_heads_the_same():
    variances = np.exp(np.random.default_rng(2).normal(scale=3, size=(4, DIM)))
    (own,) = klt_fit.layouts(FAST, [("key", variances)])
    (shared,) = klt_fit.layouts(dataclasses.replace(FAST, shared_layout=True), [("key", variances)])
    assert (shared == shared[0]).all()
    assert not (own == own[0]).all()


def test_streams_of_equal_config_share_one_budget(calibration: Calibration):
    together = Recipe.parse("both=klt(bits=2.5,block_size=16),sinks=2,recent=9")
    widths = {where: table["widths"] for where, table in calibration.tables_for(together).items()}
    assert len(widths) == 4
    assert np.mean([each.mean() for each in widths.values()]) == 2.5
    assert len({float(each.mean()) for each in widths.values()}) > 1
    apart = Recipe.parse("key=klt(bits=2.5,block_size=16),value=klt(bits=3,block_size=16),sinks=2,recent=9")
    widths = {where: table["widths"] for where, table in calibration.tables_for(apart).items()}
    for name, bits in (("key", 2.5), ("value", 3.0)):
        assert np.mean([widths[layer, name].mean() for layer in range(2)]) == bits


def test_tables_are_of_the_window_of_the_recipe(calibration: Calibration):
    near = Recipe.parse("both=klt(block_size=32),sinks=4,recent=1")
    wide = Recipe.parse("both=klt(block_size=16),sinks=2,recent=9")
    assert window_note(calibration, near) == window_note(calibration, wide) == ""
    assert window_note(calibration, Recipe.named("int8")) == ""
    streams: tuple[StreamName, ...] = ("key", "value")
    for (window, recipe), stream in itertools.product(enumerate((wide, near)), streams):
        held = calibration.statistics[1, stream]
        moments = held["mean"], held["covariance"], held[f"fisher.{window}"]
        config = recipe.plan(2)[1].key.codec
        assert isinstance(config, KltConfig)
        expected = klt_fit.coordinates(config, stream, *moments, np.asarray(calibration.rope_frequencies))
        found = calibration.tables_for(recipe)[1, stream]
        for name in ("analysis", "synthesis", "variances"):
            np.testing.assert_array_equal(found[name], expected[name])
    other = window_note(calibration, Recipe.parse("both=klt(block_size=16),sinks=0,recent=20"))
    assert "keeps 0 sinks, 20 recent, pages of 16 exact" in other
    assert "calibrated for 2 sinks, 9 recent" in other
    assert "--window 0:20" in other


def test_expected_loss_on_the_own_text_is_the_predicted_one(calibration: Calibration):
    half = calibration.statistics
    moments = stability._all_moments(half, 0, FREQUENCIES, FISHER_RIDGE)
    for config in (*stability.CONFIGS, KltConfig(form="quality", trellis=True)):
        tables = stability._with_widths(config, stability._maps(half, 0, FREQUENCIES, FISHER_RIDGE))
        streams: list[tuple[StreamName, np.ndarray, np.ndarray]] = [
            ("key" if name == "key" else "value", table["variances"], table["widths"])
            for (_, name), table in tables.items()
        ]
        found = stability.expected_loss(config, tables, moments)
        assert found == pytest.approx(klt_fit.predicted_kl(config, streams), rel=2e-3)


def test_on_the_own_text_the_smallest_ridge_loses_least(calibration: Calibration):
    half = calibration.statistics
    for row in stability.compare(half, half, calibration.exact, FREQUENCIES.tolist()):
        assert row["ratio"] == pytest.approx(1.0)
        assert [each["ridge"] for each in row["ridges"]] == list(stability.RIDGES)
        losses = [each["other"] for each in row["ridges"]]
        assert losses[0] == min(losses)
        assert losses[0] < 0.99 * losses[-1]


def test_another_mean_costs_fast_keys_what_it_is_at_every_position():
    """Tables fitted about another mean: its distance turns with the position, like any key."""
    config = stability.CONFIGS[0]
    here: tuple[int, str] = (0, "key")
    tables = klt_fit.coordinates(config, "key", MEAN, COVARIANCE, FISHER, FREQUENCIES)
    tables["widths"] = np.zeros((HEADS, DIM // 8), np.int8)
    losses = []
    for distance in (0.0, 1.0):
        mean = MEAN + distance * np.eye(DIM)[3]
        moments = stability.moments_as_coded("key", mean, COVARIANCE, FISHER, FREQUENCIES)
        losses.append(stability.expected_loss(config, {here: tables}, {here: moments}))
    metric = klt_fit.second_moment_over_page(FISHER, FREQUENCIES, config.block_size)
    metric = metric * (1 + FISHER_RIDGE * np.eye(DIM))
    turned = klt_fit.second_moment_over_page(np.diag(np.eye(DIM)[3]), FREQUENCIES, config.block_size)
    expected = 0.5 * klt_fit.COHERENCE["key", True] * np.einsum("kde,ed->", metric, turned)
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-3)


def test_stability_compares_halves(calibration: Calibration):
    same = stability.compare(calibration.statistics, calibration.statistics, calibration.exact, FREQUENCIES.tolist())
    assert [row["ratio"] for row in same] == pytest.approx([1.0] * 4)
    rows = calibration.about["stability"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["other"] / row["own"])
        assert 1.0 < row["ratio"] < 5.0
    assert rows[0]["own"] > rows[1]["own"]  # 2 and 3 bits
    assert rows[2]["own"] > rows[0]["own"]  # the nearer window

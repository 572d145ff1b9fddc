"""Searched recipes keep their budget, waste none of it, and are what the calibration expects them to be."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import cache_report
from kakeya_jax.calibration import klt_fit, search
from kakeya_jax.calibration.artifact import Calibration, ExactTokens
from kakeya_jax.calibration.fit import STANDARD, fit
from kakeya_jax.calibration.predicted_loss import predicted_loss
from kakeya_jax.calibration.search import OTHERS, Options, StreamChoice
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.eval.cli import run
from kakeya_jax.models import checkpoint
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import StreamName

BUDGETS = (0.6, 1.0, 2.0, 3.1, 5.0, 8.0, 12.0)
TIGHT = ExactTokens(sinks=0, recent=1, page=128)
WHERE: tuple[tuple[int, StreamName], ...] = ((0, "key"), (0, "value"), (1, "key"), (1, "value"))


@pytest.fixture(scope="module")
def calibration(tiny_model, tiny_tokens) -> Calibration:
    model, params = tiny_model
    return fit(model, params, tiny_tokens[:1152].reshape(3, 384), exact=(STANDARD, TIGHT))


@pytest.fixture(scope="module")
def choices(calibration) -> Options:
    return search.options(calibration)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, tiny_model, tiny_tokens, calibration) -> Path:
    """A folder with the model, its calibration, and tokens that it did not see."""
    folder = tmp_path_factory.mktemp("calibrated")
    checkpoint.save(folder, tiny_model[0].config, tiny_model[1])
    calibration.save(folder / "calibration.safetensors")
    np.save(folder / "seen.npy", tiny_tokens[:1152])
    np.save(folder / "new.npy", tiny_tokens[1152:])
    return folder


def test_budgets_are_kept_and_more_bits_are_never_worse(choices, calibration):
    found = [choices.within_bits(bits) for bits in BUDGETS]
    for bits, each in zip(BUDGETS, found, strict=True):
        report = cache_report(
            calibration.shape, each.recipe, max_length=1300, tables=calibration.tables_for(each.recipe)
        )
        assert report.all_in_bits_per_value == pytest.approx(each.bits)
        assert each.bits <= bits
        assert each.kl == pytest.approx(sum(stream.kl for stream in each.streams))
    losses = [each.kl for each in found]
    assert losses == sorted(losses, reverse=True)
    # One of 32 channel groups goes from 4 to 8 bits.
    assert all(bits - each.bits <= 4 / 32 for bits, each in zip(BUDGETS[:4], found[:4], strict=True))


def test_nothing_uniform_is_expected_to_do_better(choices, calibration):
    for column, codec in enumerate(OTHERS):
        uniform_bits, uniform_kl = choices.other_bits[:, column].mean(), choices.other_losses[:, column].sum()
        assert choices.within_bits(uniform_bits).kl <= uniform_kl, codec
    for bits in (1.0, 2.0, 4.0):
        config = KltConfig(bits=bits)
        expected = klt_fit.predicted_kl(config, _spent(calibration, config))
        assert choices.within_bits(bits + choices.forms[0].overhead).kl <= expected * (1 + 1e-9)


@pytest.mark.parametrize("form", ["fast", "quality", "trellis"])
def test_klt_spends_as_its_own_allocation_does(calibration, form):
    choices = search.options(calibration, forms=[form])
    found = choices.within_bits(2.0)
    (config,) = {rule.codec for rule in found.recipe.rules if isinstance(rule.codec, KltConfig)}
    tables = calibration.tables_for(found.recipe)
    coded: dict[tuple[int, StreamName], StreamChoice] = {
        (each.layer, each.stream): each for each in found.streams if each.codec.startswith("klt")
    }
    assert len(coded) >= 3, "on this model at this budget it is what most streams take"
    streams: list[tuple[StreamName, np.ndarray]] = [
        (where[1], np.asarray(tables[where]["variances"])) for where in coded
    ]
    widths = klt_fit.layouts(config, streams)
    for where, each, (name, variances) in zip(coded, widths, streams, strict=True):
        np.testing.assert_array_equal(each, tables[where]["widths"])
        assert coded[where].kl == pytest.approx(klt_fit.predicted_kl(config, [(name, variances, each)]))
        assert coded[where].bits == pytest.approx(each.mean() + choices.forms[0].overhead)


def test_heads_may_be_coded_together(calibration, choices):
    """Where heads have something in common, pairs are expected to lose less at the same bits; on none of them more."""
    pairs = search.options(calibration, forms=["pairs"])
    for bits in (1.0, 2.0, 3.0):
        found = pairs.within_bits(bits)
        assert found.bits <= bits
        assert found.kl < choices.within_bits(bits).kl
        assert {rule.codec.heads_together for rule in found.recipe.rules if isinstance(rule.codec, KltConfig)} == {2}
        tables = calibration.tables_for(found.recipe)
        report = cache_report(calibration.shape, found.recipe, max_length=1300, tables=tables)
        assert report.all_in_bits_per_value == pytest.approx(found.bits)
    apart = {where: named for where, named in calibration.statistics.items() if where[1] != "both"}
    with pytest.raises(ValueError, match="without --no-joint"):
        search.options(dataclasses.replace(calibration, statistics=apart), forms=["pairs"])


def test_forms_of_klt_compete_for_every_stream(calibration, choices):
    """As good as the better one at any budget, and exactly as many bits as it says."""
    both = search.options(calibration, forms=["fast", "pairs"])
    alone = [choices, dataclasses.replace(both, forms=both.forms[1:])]
    for bits in (1.0, 2.0, 3.0):
        found = both.within_bits(bits)
        assert found.bits <= bits
        assert found.kl <= 1.01 * min(each.within_bits(bits).kl for each in alone)
        tables = calibration.tables_for(found.recipe)
        report = cache_report(calibration.shape, found.recipe, max_length=1300, tables=tables)
        assert report.all_in_bits_per_value == pytest.approx(found.bits)
    assert both.within_kl(found.kl).bits <= found.bits + 1e-9
    # Pairs that are made to cost a thousandfold in one stream: both forms in one recipe.
    scale = np.array([1e3, 1.0, 1.0, 1.0])[:, None, None]
    pairs = dataclasses.replace(both.forms[1], group_losses=scale * both.forms[1].group_losses)
    none = {"others": (), "other_bits": np.zeros((4, 0)), "other_losses": np.zeros((4, 0))}
    unlike = dataclasses.replace(both, forms=(both.forms[0], pairs), **none)
    dear, cheap = unlike._prices
    mixed = unlike._found(unlike._last(lambda point: point.bits <= 2.0, start=dear, end=cheap), 2.0)
    together = [rule.codec.heads_together for rule in mixed.recipe.rules if isinstance(rule.codec, KltConfig)]
    assert sorted(together) == [1, 2]
    assert next("together" not in each.codec for each in mixed.streams if (each.layer, each.stream) == (0, "key"))
    assert mixed.bits <= 2.0
    for wrong in ([], ["slow"]):
        with pytest.raises(ValueError, match="must be some of fast, pairs, quality, quality-pairs, trellis"):
            search.options(calibration, forms=wrong)


def test_recipes_keep_the_window_that_they_were_searched_for(calibration, choices):
    """And expect of it what the calibration measured for it: near tokens cost more."""
    tight = search.options(calibration, window=TIGHT)
    found, usual = tight.within_bits(2.0), choices.within_bits(2.0)
    assert (found.recipe.sinks, found.recipe.recent) == (0, 1)
    assert (usual.recipe.sinks, usual.recipe.recent) == (4, 128)
    assert found.kl > 1.05 * usual.kl
    assert tight.other_losses.sum() > 1.05 * choices.other_losses.sum()
    report = cache_report(calibration.shape, found.recipe, max_length=2000, tables=calibration.tables_for(found.recipe))
    assert tight.within_bytes(report.bytes_per_token, 2000).bits == pytest.approx(found.bits)
    only = dataclasses.replace(
        calibration,
        exact=(TIGHT,),
        statistics={
            where: {
                ("fisher.0" if name == "fisher.1" else name): each for name, each in named.items() if name != "fisher.0"
            }
            for where, named in calibration.statistics.items()
        },
    )
    same = search.options(only).within_bits(2.0)
    assert same.recipe == found.recipe
    assert same.kl == pytest.approx(found.kl)
    with pytest.raises(ValueError, match="was not made for 2 sinks, 64 recent, pages of 128 exact, but for 4 sinks"):
        search.options(calibration, window=ExactTokens(sinks=2, recent=64, page=128))
    with pytest.raises(ValueError, match="klt closes pages of 128 tokens"):
        search.options(calibration, window=ExactTokens(sinks=4, recent=128, page=64))


def test_every_family_is_a_candidate(choices):
    assert {codec.name for codec in choices.others} == {
        *("turboquant", "kivi", "besicovitch", "lattice", "int4", "int8", "identity")
    }
    assert (choices.other_losses > 0).all()
    assert np.isfinite(choices.other_losses).all()


def test_smallest_recipe_for_a_loss(choices):
    for most in (1e-2, 1e-3, 1e-4):
        found = choices.within_kl(most)
        assert found.kl <= most
        assert choices.within_bits(found.bits - 4 / 32).kl > most
    assert choices.within_kl(1e9).bits == pytest.approx(0.566, abs=1e-3)


def test_bytes_per_token_are_those_of_a_cache(choices, calibration):
    found = choices.within_bytes(150.0, 2000)
    tables = calibration.tables_for(found.recipe)
    report = cache_report(calibration.shape, found.recipe, max_length=2000, tables=tables)
    assert 145.0 < report.bytes_per_token <= 150.0
    with pytest.raises(ValueError, match=r"the smallest takes .* of them for the exact window"):
        choices.within_bytes(30.0, 2000)
    with pytest.raises(ValueError, match="at a context of 200 tokens all of them stay exact"):
        choices.within_bytes(30.0, 200)


def test_a_stream_that_costs_a_million_times_more_stays_exact(calibration):
    scaled = {where: dict(named) for where, named in calibration.statistics.items()}
    scaled[1, "value"]["fisher.0"] = 1e6 * scaled[1, "value"]["fisher.0"]
    found = search.options(dataclasses.replace(calibration, statistics=scaled)).within_bits(6.0)
    codecs = {(each.layer, each.stream): each.codec for each in found.streams}
    assert [where for where, codec in codecs.items() if codec == "identity"] == [(1, "value")]


@pytest.mark.slow
def test_predictions_for_samples_agree_with_the_allocation_s(calibration):
    coordinates = search._coordinates(calibration, WHERE, STANDARD)
    ratios = []
    configs = [KltConfig(bits=bits, form="quality") for bits in (2, 4)]
    for config in (*configs, KltConfig(bits=2, form="quality", trellis=True)):
        cache = search._empty_cache(calibration, search._uniform(config, STANDARD))
        for (layer, name), spent in zip(WHERE, _spent(calibration, config), strict=True):
            sampled = predicted_loss(getattr(cache.layers[layer], name), name, coordinates[layer, name])
            ratios.append(sampled / klt_fit.predicted_kl(config, [spent]))
    # Measured: 0.78 to 0.94. Below 1, for the token's scale follows its vector, which the allocation does not know.
    assert 0.75 < min(ratios) < max(ratios) < 1.0


def test_predictions_know_bits_and_coherence(calibration, choices):
    turboquant = choices.other_losses[:, :3].sum(axis=0)
    assert (turboquant[:-1] > 3 * turboquant[1:]).all()
    exact = choices.other_losses[:, OTHERS.index(codec_config("identity"))].sum()
    assert 0 < exact < 1e-3 * turboquant[-1]
    # A codec that drops everything: the whole variance, at the price of what all tokens share.
    config = KltConfig(bits=2, form="quality", page_mean=False)
    tables = dict(calibration.tables_for(search._uniform(config, STANDARD))[0, "key"])
    coordinates = search._coordinates(calibration, WHERE, STANDARD)[0, "key"]
    cache = search._empty_cache(calibration, search._uniform(config, STANDARD))
    nothing = config.build(32, tables=tables | {"widths": jnp.zeros((2, 4), jnp.int8)})
    dropped = predicted_loss(dataclasses.replace(cache.layers[0].key, codec=nothing), "key", coordinates)
    assert dropped == pytest.approx(0.5 * 3.0 * float(np.sum(tables["variances"])), rel=0.1)


def test_search_command(calibrated, capsys, tmp_path):
    out = tmp_path / "new" / "small.json"
    arguments = ["search", calibrated, "--calibration", calibrated / "calibration.safetensors", "--out", out]
    measure = ["--tokens", calibrated / "new.npy", "--context", 320, "--passages", 1, "--quiet"]
    assert run([*map(str, arguments), "--max-bits", "2.5", *map(str, measure), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert Recipe.parse(str(out)) == Recipe.parse(report["recipe_text"]) == Recipe.from_dict(report["recipe"])
    assert report["all_in_bits"] <= 2.5
    (row,) = report["measured"]["rows"]
    assert row["bits_per_value"]["all_in"] == pytest.approx(report["all_in_bits"])
    assert row["bytes_per_token"] == report["bytes_per_token"]
    assert 0.1 < row["kl_mean"] / report["predicted_kl"] < 10
    about = json.loads(out.read_text())["about"]
    assert (about["predicted_kl"], about["measured_kl"]) == (report["predicted_kl"], row["kl_mean"])
    assert (about["all_in_bits"], about["bytes_per_token"]) == (report["all_in_bits"], row["bytes_per_token"])
    assert (about["model"], about["budget"], about["context"]) == (calibrated.name, {"max_bits": 2.5}, 320)
    assert (about["measured"]["text"], about["measured"]["kl_ci95"]) == ("new.npy", row["kl_ci95"])
    assert str(calibrated) not in out.read_text(), "files travel: no paths"
    assert list(out.parent.iterdir()) == [out]
    assert (about["klt_forms"], about["exact_window"]) == (["fast"], {"sinks": 4, "recent": 128})
    forms = ("--form", "fast", "--form", "pairs", "--window", "0:1")
    assert run([*map(str, arguments), "--max-kl", "0.01", *forms]) == 0
    text = capsys.readouterr().out
    assert "not measured" in text
    assert "sinks=0,recent=1" in "".join(text.split())
    about = json.loads(out.read_text())["about"]
    assert (about["klt_forms"], about["exact_window"]) == (["fast", "pairs"], {"sinks": 0, "recent": 1})
    assert about["predicted_kl"] <= 0.01
    assert about["measured_kl"] is about["measured"] is None
    assert len([line for line in text.splitlines() if line.split()[1:2] in (["key"], ["value"])]) == 4


def test_wrong_input_is_one_line(calibrated, tmp_path, capsys):
    def fails(*arguments: object) -> str:
        assert run([str(argument) for argument in ("search", *arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("kakeya: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    out = ("--out", tmp_path / "recipe.json")
    good = (calibrated, "--calibration", calibrated / "calibration.safetensors", *out)
    assert "give one budget" in fails(*good)
    assert "give one budget" in fails(*good, "--max-bits", 2, "--max-kl", 1)
    assert "a budget of 0 must be above 0" in fails(*good, "--max-bits", 0)
    assert "the smallest takes 0.566" in fails(*good, "--max-bits", 0.1)
    assert "no recipe is expected to lose 1e-15 nats" in fails(*good, "--max-kl", 1e-15)
    assert "fitted on" in fails(*good, "--max-bits", 2, "--tokens", calibrated / "seen.npy")
    assert "fewer than one context of 4096" in fails(*good, "--max-bits", 2, "--tokens", calibrated / "new.npy")
    assert "must end in .json" in fails(*good[:-1], tmp_path / "recipe", "--max-bits", 2)
    assert "calibration file" in fails(calibrated, "--calibration", tmp_path / "none", *out, "--max-bits", 2)
    assert "calibrate this model" in fails("demo", *good[1:], "--max-bits", 2)
    assert "must be some of fast" in fails(*good, "--max-bits", 2, "--form", "slow")
    assert "must be SINKS:RECENT" in fails(*good, "--max-bits", 2, "--window", "4")
    assert "was not made for 1 sinks" in fails(*good, "--max-bits", 2, "--window", "1:1")
    assert not (tmp_path / "recipe.json").exists()


def _spent(calibration: Calibration, config: KltConfig) -> list[tuple[StreamName, np.ndarray, np.ndarray]]:
    """Arguments of ``klt_fit.predicted_kl`` for one codec everywhere."""
    tables = calibration.tables_for(search._uniform(config, STANDARD))
    return [(where[1], np.asarray(tables[where]["variances"]), np.asarray(tables[where]["widths"])) for where in WHERE]

"""One pass over a text: in parts, interrupted or on several devices it gives the same file."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration import codec_tables, resume
from kakeya_jax.calibration import fit as fit_module
from kakeya_jax.calibration.artifact import Calibration, ExactTokens, text_hash
from kakeya_jax.calibration.codec_tables import check_recipes, dense_vectors, fit_codec_tables
from kakeya_jax.calibration.fit import fit
from kakeya_jax.calibration.fitted_streams import fitted_name
from kakeya_jax.calibration.merge import merge_calibrations
from kakeya_jax.recipe import Recipe

OWN_TABLES = Recipe.parse(
    "key=kakeya(bits=2,basis=shared,rank=8,centroids=calibrated,block_size=32,kmeans_centers=4),"
    "value=riemannian(static_mean=true,block_size=16),sinks=2,recent=4"
)


def assert_equal_statistics(found: Calibration, expected: Calibration, *, relative: float) -> None:
    assert found.statistics.keys() == expected.statistics.keys()
    for where, named in expected.statistics.items():
        assert found.statistics[where].keys() == named.keys()
        for name, array in named.items():
            assert array.dtype == np.float32
            got = found.statistics[where][name]
            np.testing.assert_allclose(
                got, array, rtol=0, atol=relative * np.abs(array).max(), err_msg=f"{where} {name}"
            )


def test_parts_merge_into_the_whole(model, params, passages, calibration: Calibration):
    exact = calibration.exact
    parts = [fit(model, params, each, exact=exact, samples=2) for each in (passages[:1], passages[1:])]
    merged = merge_calibrations(parts)
    assert_equal_statistics(merged, calibration, relative=2e-5)
    assert set(merged.corpus) == set(calibration.corpus)
    assert (merged.about["tokens"], merged.about["passages"]) == (400, 4)
    assert merged.about["seed"] == 0
    assert [part["passages"] for part in merged.about["merged"]] == [1, 3]
    assert len(merged.about["stability"]) == 4
    assert parts[0].about["stability"] == []  # of one passage there are no halves


def test_only_calibrations_that_belong_together_merge(calibration: Calibration):
    other = dataclasses.replace(calibration, corpus=("another",))
    merge_calibrations([calibration, other])
    for change, message in (
        ({"model": "x"}, "different models"),
        ({"exact": calibration.exact[:1]}, "different exact windows"),
        ({"fisher": "differences"}, "different ways of making Fisher matrices"),
        ({"statistics": {(0, "key"): {}}}, "--no-joint"),
        ({"corpus": calibration.corpus[-1:]}, "fitted on the same text"),
        ({"fitted": {(0, "key", "kakeya"): {}}}, "do not merge"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_calibrations([calibration, dataclasses.replace(other, **change)])
    with pytest.raises(ValueError, match="at least two"):
        merge_calibrations([calibration])


def test_an_interrupted_run_goes_on_where_it_was(
    model, params, passages, calibration: Calibration, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(resume, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(resume, "_LARGEST_SHARE", 1e9)
    path = tmp_path / "unfinished"
    seen: list[tuple[int, int]] = []

    def run(stop_at: int | None, **options: Any) -> Calibration:
        def report(done: int, total: int, what: str) -> None:
            seen.append((done, total))
            if stop_at == done:
                raise KeyboardInterrupt

        arguments = {"exact": calibration.exact, "samples": 2, "resume": path, "progress": report, **options}
        return fit(model, params, passages, **arguments)

    with pytest.raises(KeyboardInterrupt):
        run(2)
    assert path.is_file()
    assert not path.with_name("unfinished.partial").exists()
    for options, name in (
        ({"seed": 1}, "seed=0, this one has 1"),
        ({"samples": 1}, "samples=2"),
        ({"joint": False}, "joint"),
    ):
        with pytest.raises(ValueError, match=f"unfinished calibration with {name}"):
            run(None, **options)
    seen.clear()
    finished = run(None)
    assert seen == [(0, 2), (1, 2), (2, 2)]  # the steps of this call, so that the time left is right
    assert_equal_statistics(finished, calibration, relative=0.0)
    seen.clear()
    assert_equal_statistics(run(None), calibration, relative=0.0)  # killed before the result was written
    assert seen == [(0, 0)]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="delete it"):
        run(None)


def test_sums_are_written_seldom(tmp_path: Path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: clock[0])
    file = resume.Resume(path=tmp_path / "sums", run={})
    clock[0] = 29.0
    assert not file.is_due()
    clock[0] = 31.0
    assert file.is_due()
    replace = os.replace

    def slow(*paths: Any) -> None:
        clock[0] += 4.0
        replace(*paths)

    monkeypatch.setattr(os, "replace", slow)
    file.save(1, {"a": np.ones(2)})
    clock[0] += 79.0  # 4 seconds of writing are worth 80 of work
    assert not file.is_due()
    clock[0] += 2.0
    assert file.is_due()
    assert file.load({"a": 0})[0] == 1  # pyright: ignore[reportOptionalSubscript]
    file.remove()
    file.remove()
    assert file.load({"a": 0}) is None


def test_passages_are_dealt_out_to_devices(model, params, passages, calibration: Calibration):
    device = jax.devices()[0]
    shared = fit(model, params, passages, exact=calibration.exact, samples=2, devices=[device] * 3)
    assert_equal_statistics(shared, calibration, relative=2e-5)


def test_the_header_says_where_it_comes_from(calibration: Calibration, passages: np.ndarray):
    about = calibration.about
    assert {
        name: about[name] for name in ("tokens", "passages", "passage_length", "label_samples", "seed", "text")
    } == {
        "tokens": 400,
        "passages": 4,
        "passage_length": 100,
        "label_samples": 2,
        "seed": 0,
        "text": "random",
    }
    assert about["corpus_hash"] == text_hash(passages)
    assert [(row["window"], row["bits"]) for row in about["stability"]] == [
        (str(window), bits) for window in calibration.exact for bits in (2.0, 3.0)
    ]


def test_wrong_requests_are_refused(model, params, passages):
    with pytest.raises(
        ValueError, match="code nothing with 4 sinks, 128 recent, pages of 128; use passages of at least 260"
    ):
        fit(model, params, passages)
    tight = ExactTokens(sinks=0, recent=1, page=16)
    with pytest.raises(ValueError, match="samples=0"):
        fit(model, params, passages, exact=[tight], samples=0)
    with pytest.raises(ValueError, match="'int8' needs no calibration"):
        fit(model, params, passages, exact=[tight], recipes=[Recipe.named("int8")])
    with pytest.raises(ValueError, match="block_size=32"):
        check_recipes([OWN_TABLES], 2, 33)
    with pytest.raises(ValueError, match="two recipes fit kakeya"):
        check_recipes([OWN_TABLES, dataclasses.replace(OWN_TABLES, sinks=5)], 2, 100)


@pytest.fixture(scope="module")
def with_own_tables(model, params, passages, calibration: Calibration) -> Calibration:
    fitted = fit_codec_tables(model, params, passages, [OWN_TABLES], calibration)
    return dataclasses.replace(calibration, fitted=fitted)


def test_own_tables_serve_a_stream(model, params, config, with_own_tables: Calibration):
    tables = with_own_tables.tables_for(OWN_TABLES)
    assert set(tables[0, "key"]) == {"mean", "basis", "centroids"}
    assert {"scales", "static_mean"} <= set(tables[1, "value"])
    with pytest.raises(ValueError, match="table"):
        CompressedCache.init(config, OWN_TABLES, batch_size=1, max_length=96)
    cache = CompressedCache.init(config, OWN_TABLES, batch_size=1, max_length=96, tables=tables)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (1, 96)))
    logits, _ = jax.jit(model.apply)({"params": params}, tokens, cache=cache)
    assert bool(jnp.isfinite(logits).all())


def test_shared_basis_holds_the_energy_of_new_text(model, params, with_own_tables: Calibration):
    """A basis fitted on one text must catch more energy of another than a random basis of its rank would."""
    vectors = dense_vectors(model, params, jnp.asarray(np.random.default_rng(2).integers(0, 97, 96)))
    key = vectors[0]["key"].reshape(-1, 16)
    tables = with_own_tables.tables_for(OWN_TABLES)[0, "key"]
    centered = key - tables["mean"]
    kept = jnp.sum((centered @ tables["basis"].T) ** 2) / jnp.sum(centered**2)
    assert 0.6 < float(kept) < 1.0


def test_tables_are_fitted_to_what_the_codec_sees(monkeypatch, model, params, passages, calibration: Calibration):
    """Without sinks, as the stream stores them, in its frame."""
    seen: dict[str, list[np.ndarray]] = {}

    def spy(codec: Any, layers: list[np.ndarray], others: Any) -> list[dict[str, Any]]:
        seen[codec.name] = layers
        return [{} for _ in layers]

    monkeypatch.setattr(codec_tables, "fit_own_tables", spy)
    monkeypatch.setattr(codec_tables, "MOST_TOKENS", 250)
    fit_codec_tables(model, params, passages, [OWN_TABLES], calibration)
    assert [each.shape for each in seen["kakeya"]] == [(2, 2, 98, 16)] * 2
    vectors = [dense_vectors(model, params, jnp.asarray(passage)) for passage in passages[:2]]
    value = np.stack([each[1]["value"] for each in vectors])[:, :, 2:]
    mean = calibration.statistics[1, "value"]["mean"][:, None]
    np.testing.assert_allclose(seen["riemannian"][1], value - mean, atol=1e-5)
    key = np.stack([each[1]["key"] for each in vectors])[:, :, 2:]
    np.testing.assert_allclose(seen["kakeya"][1], key, atol=1e-5)


def test_tables_of_other_coordinates_have_another_name():
    usual, turned = (Recipe.parse(f"key{at}=riemannian").plan(1)[0].key for at in ("", "@post"))
    assert fitted_name(usual, (0,)) == "riemannian"
    assert fitted_name(turned, (0,)) == "riemannian@post"


def test_tables_pooled_over_other_layers_have_another_name():
    pooled = Recipe.parse("key=riemannian(centroids=pooled)").plan(1)[0].key
    assert fitted_name(pooled, (1, 2)) == "riemannian(centroids=pooled) over layers 1,2"


def test_joint_moments_are_left_out_of_wide_models(monkeypatch, model, params, passages):
    monkeypatch.setattr(fit_module, "MOST_JOINT_CHANNELS", 63)
    tight = ExactTokens(sinks=0, recent=1, page=16)
    found = fit(model, params, passages[:1, :40], exact=[tight], backward=False)
    assert {stream for _, stream in found.statistics} == {"key", "value"}


def test_storage_tables_are_counted_on_the_text(model, params, config, passages, calibration: Calibration):
    recipe = Recipe.parse("both=klt-storage(bits=2,block_size=16),sinks=2,recent=4")
    fitted = fit_codec_tables(model, params, passages, [recipe], calibration)
    counted = dataclasses.replace(calibration, fitted=fitted).tables_for(recipe)
    modelled = calibration.tables_for(recipe)
    assert counted.keys() == modelled.keys() == {(0, "both"), (1, "both")}
    tables = dict(counted[0, "both"])
    assert not np.array_equal(tables["frequencies"], modelled[0, "both"]["frequencies"])
    recipe.plan(2)[0].key.codec.build(config.head_dim, tables=tables)

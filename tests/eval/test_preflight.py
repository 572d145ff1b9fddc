"""The doctor's look at a recipe: what it measures, where it says FAIL, and what it says instead."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_arguments import calibrate_arguments
from result_samples import sample_result, sample_row

from kakeya_jax.accounting import report
from kakeya_jax.cache import CompressedCache
from kakeya_jax.eval import preflight
from kakeya_jax.eval import preflight_limits as limits
from kakeya_jax.eval.activation_check import LayerCheck, check_activations
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.merge import load_result
from kakeya_jax.eval.preflight import judge, known_risks, layers_at_risk
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.stress import stress
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"
LAYER = LayerCheck(
    layer=0,
    logit_error=0.1,
    value_error=0.01,
    key_outlier=2.0,
    value_outlier=2.0,
    query_condition=1e3,
    largest=10.0,
    non_finite=0,
)

pytestmark = pytest.mark.usefixtures("keep_environment")


def check(model, params, recipe: str, tokens: np.ndarray) -> list[LayerCheck]:
    cache = CompressedCache.init(
        model.config, Recipe.parse(recipe), batch_size=1, max_length=len(tokens), dtype=jnp.float32
    )
    return check_activations(model, params, cache, jnp.asarray(tokens))


def statuses(row, *layers: LayerCheck, families: tuple[str, ...] = ()) -> dict[str, str]:
    layers = layers or (LAYER,)
    found = judge(row, layers, layers_at_risk(layers), families, sample_result(row))
    return {each.name: each.status for each in found}


def test_errors_of_layers_are_those_of_the_codes(tiny_model, tiny_tokens):
    model, params = tiny_model
    tokens = tiny_tokens[:96]
    exact, fine, coarse = (
        check(model, params, f"both={codec},sinks=0,recent=1", tokens)
        for codec in ("identity(block_size=16)", "int8(block_size=16)", "int4(block_size=16)")
    )
    for same, small, large in zip(exact, fine, coarse, strict=True):
        assert same.logit_error < 0.02  # bfloat16
        assert 0 < small.logit_error < 0.2 * large.logit_error
        assert 0 < small.value_error < 0.05 * large.value_error
        assert small.query_condition == large.query_condition > 1
        assert small.non_finite == 0
    nothing = check(model, params, "both=int4(block_size=16),recent=128", tokens)
    assert [each.logit_error for each in nothing] == [0.0, 0.0]


def test_outlier_channels_are_seen(tiny_model, tiny_tokens):
    model, params = tiny_model
    recipe, tokens = "both=turboquant(bits=4,block_size=16),sinks=0,recent=1", tiny_tokens[:96]
    plain = check(model, params, recipe, tokens)
    stressed = check(model, stress(params, model.config, 32.0), recipe, tokens)
    for before, after in zip(plain, stressed, strict=True):
        assert before.key_outlier < 5
        assert after.key_outlier > 3 * limits.OUTLIER_RATIO / 2
        assert after.value_outlier > 8 * before.value_outlier
        assert after.logit_error > 5 * before.logit_error


def test_values_that_are_not_finite_are_counted(tiny_model, tiny_tokens):
    model, params = tiny_model
    broken = jax.tree.map(lambda leaf: leaf, params)
    broken["layers_1"]["attention"]["v_proj"]["kernel"] *= jnp.nan
    found = check(model, broken, "both=int8(block_size=16),recent=1", tiny_tokens[:64])
    assert found[0].non_finite == 0
    assert found[1].non_finite > 0


def test_limits_agree_with_the_committed_verdicts():
    """Beyond ``BROKEN`` in KL every committed row is REJECT; within ``SOUND`` none is."""
    paths = [*RESULTS.glob("house-*.json"), *(RESULTS / "stress").glob("*.json")]
    rows = [row for path in paths for row in load_result(path).rows]
    beyond = [row.verdict for row in rows if not row.kl_mean <= limits.BROKEN.max_kl]
    within = [row.verdict for row in rows if limits.SOUND.met(row.kl_mean, row.top1_agreement)]
    assert len(beyond) > 30
    assert set(beyond) == {"REJECT"}
    assert len(within) > 300
    assert "REJECT" not in within


def test_quality_is_judged_by_the_limits():
    assert statuses(sample_row("a", 0.001))["quality"] == "PASS"
    assert statuses(sample_row("a", 0.02, top1_agreement=0.9))["quality"] == "WARN"
    assert statuses(sample_row("a", 0.06))["quality"] == "FAIL"
    assert statuses(sample_row("a", 0.001, top1_agreement=0.8))["quality"] == "FAIL"
    broken = statuses(sample_row("a", float("nan")))
    assert (broken["finite values"], broken["quality"]) == ("FAIL", "FAIL")


def test_a_known_risk_asks_for_more():
    row = sample_row("a", 0.005)
    assert statuses(row)["quality"] == "PASS"
    at_risk = statuses(row, families=("norms on each head",))
    assert (at_risk["quality"], at_risk["known risk"]) == ("FAIL", "FAIL")
    near_lossless = statuses(sample_row("a", 0.0005, top1_agreement=0.99), families=("norms",))
    assert (near_lossless["quality"], near_lossless["known risk"]) == ("PASS", "NOTE")


def test_ranges_outliers_and_layers():
    row = sample_row("a", 0.001)
    assert statuses(row, dataclasses.replace(LAYER, largest=1e5))["range"] == "FAIL"
    assert statuses(row, dataclasses.replace(LAYER, value_outlier=50.0))["outlier channels"] == "NOTE"
    assert statuses(row, dataclasses.replace(LAYER, query_condition=1e6))["query second moment"] == "NOTE"
    layers = [dataclasses.replace(LAYER, layer=index) for index in range(8)]
    assert layers_at_risk(tuple(layers)) == ()
    layers[5] = dataclasses.replace(layers[5], logit_error=0.5)
    assert layers_at_risk(tuple(layers)) == (5,)
    assert statuses(row, *layers)["layers at risk"] == "NOTE"


@pytest.mark.parametrize(
    ("recipe", "layer", "qk_norm", "risks"),
    [
        ("turboquant-4", LAYER, False, 0),
        ("turboquant-4", dataclasses.replace(LAYER, key_outlier=40.0), False, 1),
        ("key=identity,value=int4", dataclasses.replace(LAYER, value_outlier=40.0), False, 1),
        ("klt-2", dataclasses.replace(LAYER, key_outlier=40.0), True, 0),
        ("kivi-2", LAYER, True, 1),
        ("kivi-4", LAYER, True, 0),
        ("key=int4,value=kivi(bits=2)", LAYER, True, 0),
        ("key@pre=turboquant(whiten=true,bits=4)", dataclasses.replace(LAYER, query_condition=1e6), False, 1),
        (
            "key@pre=turboquant(whiten=true,max_condition=50,bits=4)",
            dataclasses.replace(LAYER, query_condition=1e6),
            False,
            0,
        ),
    ],
)
def test_families_that_are_known_to_break(tiny_config, recipe: str, layer: LayerCheck, qk_norm: bool, risks: int):
    parsed = Recipe.parse(recipe)
    config = dataclasses.replace(tiny_config, model_type="qwen3") if qk_norm else tiny_config
    tables = neutral_tables(config, parsed) if parsed.needs_calibration else None
    cache = CompressedCache.init(config, parsed, batch_size=1, max_length=512, tables=tables)
    assert len(list(known_risks(parsed, config, report(cache), (layer,)))) == risks


def test_stressed_model_fails_with_turboquant_and_passes_with_klt(
    monkeypatch, model_folder, token_file, tmp_path, capsys
):
    """The tiny model's weights are random and its best guesses nearly ties: six bits, and top-1 is only warned of."""
    monkeypatch.setattr(preflight, "ALTERNATIVES", ("turboquant-4", "kivi-4"))
    train = tmp_path / "train.npy"
    np.save(train, np.random.default_rng(7).integers(0, 101, 2048).astype(np.int32))
    stressed = calibrated_doctor(model_folder, token_file, train, tmp_path, "--context", 512, "--stress", 128)
    capsys.readouterr()
    assert run([*stressed, "--recipe", "turboquant-4"]) == 1
    failed = json.loads(capsys.readouterr().out)
    assert failed["status"] == "FAIL"
    assert any("outlier channels" in check["detail"] for check in failed["checks"] if check["name"] == "known risk")
    assert [line.split(" has ")[0] for line in failed["advice"]] == ["none of kivi-4"]
    assert run([*stressed, "--recipe", "klt-6"]) == 0
    passed = json.loads(capsys.readouterr().out)
    assert passed["status"] in ("PASS", "WARN")
    assert passed["row"]["kl_mean"] < 0.1 * failed["row"]["kl_mean"]
    assert passed["row"]["kl_mean"] < limits.AT_RISK.max_kl
    assert passed["advice"] == []
    assert len(passed["layers"]) == 2


def calibrated_doctor(model: object, text: object, train: Path, folder: Path, *options: object) -> list[str]:
    """The command, for a recipe to be added; its calibration is made first."""
    calibration = folder / "stressed.safetensors"
    arguments = calibrate_arguments(model, calibration, "--tokens", train, "--no-joint", "--samples", 1, *options)
    assert run(arguments) == 0
    command = [
        "doctor",
        "--model",
        model,
        "--tokens",
        text,
        *options,
        "--quiet",
        "--json",
        "--calibration",
        calibration,
    ]
    return [str(each) for each in command]


def test_bad_inputs(fails, model_folder, token_file):
    assert "no recipe; give --recipe RECIPE" in fails("doctor", "--model", "demo")
    said = fails(
        "doctor", "--model", model_folder, "--tokens", token_file, "--recipe", "int8", "--context", 128, "--quiet"
    )
    assert "int8 codes nothing at context=128; use a longer --context" in said
    assert "unknown recipe or codec 'int5'" in fails("doctor", "--recipe", "int5")


@pytest.mark.slow
def test_stressed_bundled_model_is_told_to_use_klt(tmp_path, capsys):
    tokens = encode_text(bundled_text(), load_tokenizer("demo"))
    half = len(tokens) // 2
    for name, part in (("train", tokens[:half]), ("text", tokens[half:])):
        np.save(tmp_path / f"{name}.npy", part)
    stressed = calibrated_doctor(
        "demo", tmp_path / "text.npy", tmp_path / "train.npy", tmp_path, "--context", 1024, "--stress", 32
    )
    capsys.readouterr()
    assert run([*stressed, "--recipe", "turboquant-4"]) == 1
    failed = json.loads(capsys.readouterr().out)
    assert failed["status"] == "FAIL"
    assert failed["advice"][0].startswith("use instead klt-")
    assert run([*stressed, "--recipe", "klt-2"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "PASS"

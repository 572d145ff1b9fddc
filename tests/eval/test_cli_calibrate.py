"""`kakeya calibrate` as its users meet it, and what other commands do with its files."""

import json
import shlex

import numpy as np
import pytest
from cli_arguments import calibrate_arguments, eval_arguments

from kakeya_jax.eval.cli import run

pytestmark = pytest.mark.usefixtures("keep_environment")


def test_calibrate_then_evaluate(fails, model_folder, token_file, tmp_path, capsys):
    own = "both=riemannian(block_size=16),sinks=2,recent=8"
    klt = "both=klt(block_size=16),sinks=2,recent=8"
    out = tmp_path / "new" / "tables.safetensors"
    train = ["--text", model_folder / "text.txt", "--window", "2:8:16"]
    assert run(calibrate_arguments(model_folder, out, *train, "--recipe", own)) == 0
    said = capsys.readouterr().out
    assert "statistics of 2 layers for 2 sinks, 8 recent, pages of 16, tables for 4 streams" in said
    assert "256 tokens of text.txt" in said
    assert list(out.parent.iterdir()) == [out]  # nothing unfinished is left
    for recipe in (own, klt):
        assert "needs" in fails(*eval_arguments(model_folder, token_file, "--recipe", recipe))
    calibrated = ["--recipe", own, "--recipe", klt, "--calibration", out, "--quiet", "--json", "-"]
    assert run(eval_arguments(model_folder, token_file, *calibrated)) == 0
    document = json.loads(capsys.readouterr().out)
    for row in document["rows"]:
        assert row["bits_per_value"]["all_in"] > row["bits_per_value"]["payload"] > 0
    assert not [text for text in document["warnings"] if "calibrat" in text]
    leaking = ["eval", model_folder, "--text", model_folder / "text.txt", "--context", 128, "--passages", 2]
    assert "fitted on" in fails(*leaking, *calibrated)


def test_calibrate_a_stressed_model(fails, model_folder, token_file, tmp_path, capsys):
    out = tmp_path / "stressed.safetensors"
    train = ["--text", model_folder / "text.txt", "--window", "2:8:16"]
    assert run(calibrate_arguments(model_folder, out, *train, "--stress", "8")) == 0
    capsys.readouterr()
    recipe = ["--recipe", "both=klt(block_size=16),sinks=2,recent=8", "--calibration", out, "--quiet", "--json", "-"]
    assert run(eval_arguments(model_folder, token_file, *recipe, "--stress", "8")) == 0
    assert json.loads(capsys.readouterr().out)["model"].endswith("stress8")
    assert "other weights" in fails(*eval_arguments(model_folder, token_file, *recipe))


def test_calibrate_refuses_in_one_line(fails, model_folder, token_file, tmp_path):
    out = tmp_path / "tables"
    train = ["--tokens", token_file]
    assert "needs no calibration" in fails(*calibrate_arguments(model_folder, out, *train, "--recipe", "int8"))
    assert "code nothing with 4 sinks, 128 recent" in fails(*calibrate_arguments(model_folder, out, *train))
    for window in ("4", "4:x", "4:128:0", "1:2:3:4", "4:0"):
        assert f"--window '{window}'" in fails(*calibrate_arguments(model_folder, out, *train, "--window", window))
    assert "either --text FILE or --tokens FILE" in fails("calibrate", model_folder, "--out", out)
    assert "nowhere to write" in fails("calibrate", model_folder, *train)
    assert "no model" in fails("calibrate", "--out", out, *train)
    assert "only looks at a file" in fails("calibrate", model_folder, "--check", out)
    assert "takes no model" in fails("calibrate", model_folder, "--merge", out, "--merge", out, "--out", out)
    assert "does not exist" in fails("calibrate", "--check", out)
    for option in ("context", "passages", "samples"):
        for number in (0, -5):
            said = fails(*calibrate_arguments(model_folder, out, *train, f"--{option}={number}"))
            assert f"--{option} {number} must be at least 1" in said
    said = fails(*calibrate_arguments(model_folder, out, *train, "--context", 4096))
    assert "text has 1600 tokens, fewer than context=4096; use a longer text or a smaller context" in said
    said = fails(*calibrate_arguments(model_folder, out, *train, "--passages", 13))
    assert "passages=13 must be between 1 and 12, as many of context=128 as 1600 tokens hold; use fewer" in said
    assert not out.exists()
    for arguments in (
        calibrate_arguments("no/model", tmp_path, *train),
        ["calibrate", "--merge", out, "--out", tmp_path],
    ):
        assert "is a folder; name a file in it" in fails(*arguments)  # before anything is loaded


def test_missing_tables_name_the_command_that_fits_them(fails, model_folder, token_file):
    for recipe, table in (("ladder-b3", "whitening"), ("value=kakeya(bits=2,basis=shared)", "mean")):
        said = fails(*eval_arguments(model_folder, token_file, "--recipe", recipe))
        assert f"needs the table '{table}'; fit it with `kakeya calibrate MODEL" in said
        assert f"--recipe {shlex.quote(recipe)} --out FILE`" in said


def test_explain_finds_the_calibration_of_the_bundled_model(fails, capsys):
    assert run(["explain", "klt-2", "--model", "demo", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits_per_value"]["payload"] == pytest.approx(2.0, abs=0.01)
    assert report["table_bytes"] > 0
    assert "kakeya calibrate MODEL" in fails("explain", "ladder-b3", "--model", "demo")


def test_calibrations_merge_and_are_looked_at(fails, model_folder, token_file, tmp_path, capsys):
    train = ["--window", "2:8:16", "--no-joint"]
    tokens = np.load(token_file)
    for name, part in (("a", tokens[:700]), ("b", tokens[700:])):
        np.save(tmp_path / f"{name}.npy", part)
        assert (
            run(calibrate_arguments(model_folder, tmp_path / name, "--tokens", tmp_path / f"{name}.npy", *train)) == 0
        )
    merge = ["calibrate", *(argument for name in "ab" for argument in ("--merge", str(tmp_path / name)))]
    assert run([*merge, "--out", str(tmp_path / "c")]) == 0
    assert "512 tokens of a, b" in capsys.readouterr().out
    assert run(["calibrate", "--check", str(tmp_path / "c"), "--model", str(model_folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["header"]["tokens"], report["header"]["passages"]) == (512, 4)
    assert report["header"]["model"] == model_folder.name
    assert len(report["header"]["tokenizer_hash"]) == 64
    assert [(each["layer"], each["stream"]) for each in report["streams"]] == [
        (layer, stream) for layer in range(2) for stream in ("key", "value")
    ]
    assert run(["calibrate", "--check", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    assert "512 tokens, Fisher matrices from gradients" in text
    assert "float16 holds all keys and values" in text
    assert "window 2 sinks, 8 recent, pages of 16: tr(F S) spans" in text
    assert "on the other half" in text
    assert "kakeya-jax" in text
    assert "same text" in fails(*merge, "--merge", tmp_path / "a", "--out", tmp_path / "d")


def test_calibrating_without_gradients_is_said_wherever_it_is_used(model_folder, token_file, tmp_path, capsys):
    out = tmp_path / "tables"
    train = ["--text", model_folder / "text.txt", "--window", "2:8:16", "--no-backward"]
    assert run(calibrate_arguments(model_folder, out, *train)) == 0
    assert run(["calibrate", "--check", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Fisher matrices from differences" in text
    assert "warning: calibrated without a backward pass" in text
    klt = ["--recipe", "both=klt(block_size=16),sinks=2,recent=8", "--calibration", out, "--quiet", "--json", "-"]
    assert run(eval_arguments(model_folder, token_file, *klt)) == 0
    assert "calibrated without a backward pass" in " ".join(json.loads(capsys.readouterr().out)["warnings"])


def test_an_interrupted_calibration_is_resumed(monkeypatch, fails, model_folder, token_file, tmp_path, capsys):
    out = tmp_path / "tables"
    train = ["--tokens", token_file, "--window", "2:8:16"]
    monkeypatch.setattr("kakeya_jax.calibration.artifact.Calibration.save", _interrupt)
    assert run(calibrate_arguments(model_folder, out, *train)) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["tables.unfinished"]
    monkeypatch.undo()
    assert "seed=0, this one has 5" in fails(*calibrate_arguments(model_folder, out, *train, "--seed", 5))
    assert run(calibrate_arguments(model_folder, out, *train)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

"""The command line as its users meet it: exit codes, one-line errors, JSON."""

import json
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import jsonschema
import pytest
from cli_arguments import calibrate_arguments, eval_arguments

from kakeya_jax import accounting
from kakeya_jax.cache import CompressedCache
from kakeya_jax.codecs.registry import codec_names
from kakeya_jax.eval import demo, doctor, run_eval
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.results import SCHEMA
from kakeya_jax.models import checkpoint
from kakeya_jax.recipe import Recipe

PAGES_OF_16 = "both=int8(block_size=16),sinks=2,recent=8"

pytestmark = pytest.mark.usefixtures("keep_environment")


def test_eval_writes_table_json_markdown_and_plot(model_folder, token_file, tmp_path, capsys):
    json_path, markdown, plot = tmp_path / "out.json", tmp_path / "out.md", tmp_path / "out.png"
    outputs = ("--json", json_path, "--markdown", markdown, "--plot", plot)
    assert run(eval_arguments(model_folder, token_file, "--recipe", PAGES_OF_16, *outputs)) == 0
    captured = capsys.readouterr()
    assert "190 tokens scored" in captured.out
    assert "[5/5]" in captured.err
    document = json.loads(json_path.read_text())
    jsonschema.validate(document, SCHEMA)
    assert (document["model"], document["text"]) == (model_folder.name, "tokens.npy")
    assert document["rows"][0]["recipe"] == PAGES_OF_16
    assert PAGES_OF_16 in markdown.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_eval_prints_nothing_but_json(model_folder, capsys):
    arguments = ["eval", model_folder, "--text", model_folder / "text.txt", "--context", 128, "--passages", 2]
    arguments += ["--recipe", PAGES_OF_16, "--warmup", 32, "--json", "-", "--quiet", "--gates", "accept=90"]
    assert run([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert document["rows"][0]["verdict"] == "ACCEPT"
    assert "accept=90" in document["gates"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("int5", "unknown recipe or codec 'int5'; did you mean 'int"),
        ("key=int8,value=", "is not a codec"),
        ("key=int4(size=3)", "codec 'int4' has no option size; its options: block_size"),
        ("key=int8,sinks=many", "sinks='many' in recipe must be a whole number"),
        ("key=int8(", "unbalanced brackets"),
        ("nothing.json", "recipe file nothing.json does not exist"),
        ("int4(group_size=48)", "int4: group_size=48 must divide head_dim=32"),
    ],
)
def test_bad_recipes(fails, model_folder, token_file, recipe: str, message: str):
    assert message in fails(*eval_arguments(model_folder, token_file, "--recipe", recipe))


def test_bad_inputs(fails, model_folder, token_file, tmp_path):
    recipe = ("--recipe", PAGES_OF_16)
    assert "there is no folder" in fails(*eval_arguments(tmp_path / "none", token_file, *recipe))
    assert "does not exist" in fails(*eval_arguments(model_folder, tmp_path / "none.npy", *recipe))
    assert "give --text FILE or --tokens FILE" in fails("eval", model_folder, *recipe)
    assert "no recipe" in fails(*eval_arguments(model_folder, token_file))
    assert "calibration file" in fails(
        *eval_arguments(model_folder, token_file, *recipe, "--calibration", tmp_path / "none")
    )
    assert "dtype 'int3'" in fails(*eval_arguments(model_folder, token_file, *recipe, "--dtype", "int3"))
    assert "gates 'loose'" in fails(*eval_arguments(model_folder, token_file, *recipe, "--gates", "loose"))
    long = ("eval", model_folder, "--tokens", token_file, *recipe, "--context", "4096")
    assert "has 1600 tokens, fewer than one context of 4096" in fails(*long)
    assert "No such option" in fails("eval", model_folder, "--frobnicate")
    assert "No such command" in fails("frobnicate")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--context", -4096),
        ("--context", 1),
        ("--passages", 0),
        ("--warmup", -1),
        ("--continuation", 1),
        ("--chunk", 0),
    ],
)
def test_numbers_out_of_range(fails, option: str, value: int):
    assert f"Invalid value for '{option}'" in fails("eval", "demo", "--recipe", "int8", option, value)


def test_sizes_of_the_other_protocol(fails):
    said = fails("eval", "demo", "--recipe", "int8", "--continuation", 50)
    assert "continuation=50 belongs to the snapshot protocol, not to stream; leave it out" in said
    said = fails("eval", "demo", "--recipe", "int8", "--protocol", "snapshot", "--warmup", 50)
    assert "warmup=50 belongs to the stream protocol, not to snapshot; leave it out" in said


def test_outputs_that_cannot_be_written_are_found_before_the_run(
    monkeypatch, fails, model_folder, token_file, tmp_path
):
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the outputs were checked")

    monkeypatch.setattr(checkpoint, "load", work)
    monkeypatch.setattr("kakeya_jax.eval.run_calibrate.merge_calibrations", work)
    (tmp_path / "file").touch()
    below, folder = tmp_path / "file" / "out", tmp_path / "folder.png"
    folder.mkdir()
    of_eval = eval_arguments(model_folder, token_file, "--recipe", PAGES_OF_16)
    train = ("--tokens", token_file)
    budget = ("--calibration", tmp_path / "file", "--max-bits", 2)
    for command in (
        (*of_eval, "--json", below),
        (*of_eval, "--markdown", below),
        (*of_eval, "--plot", f"{below}.png"),
        calibrate_arguments(model_folder, below, *train),
        ("calibrate", "--merge", tmp_path / "a", "--merge", tmp_path / "b", "--out", below),
        ("search", model_folder, *budget, "--out", f"{below}.json"),
        ("demo", "--out", below),
    ):
        assert f"cannot be written: {tmp_path / 'file'} is no folder" in fails(*command)
    assert "--plot" in (said := fails(*of_eval, "--plot", folder))
    assert "is a folder; name a file in it" in said
    assert "must end in .png" in fails(*of_eval, "--plot", tmp_path / "plot.doc")
    (tmp_path / "demo" / "results.md").mkdir(parents=True)
    assert "results.md is a folder" in fails("demo", "--out", tmp_path / "demo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "file", "folder.png"]


def test_folders_that_refuse_new_files_are_found_before_the_run(monkeypatch, fails, model_folder, token_file, tmp_path):
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")  # a superuser may write to any folder

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    arguments = eval_arguments(model_folder, token_file, "--recipe", PAGES_OF_16, "--json", tmp_path / "new" / "a.json")
    assert f"cannot be written: Permission denied: {tmp_path}; name another place" in fails(*arguments)


def test_a_plot_of_recipes_that_code_nothing(model_folder, token_file, tmp_path, capsys):
    plot = ["--plot", tmp_path / "kl.png", "--no-encode-time", "--quiet"]
    # With its window of 4 + 128 tokens int8 codes nothing of 128.
    assert run(eval_arguments(model_folder, token_file, "--recipe", "int8", *plot)) == 2
    said = capsys.readouterr()
    assert "int8" in said.out  # the table is there nevertheless
    assert said.err.count("\n") == 1
    assert "no recipe has both coded values and a finite KL; use a longer --context" in said.err


def test_the_bundled_calibration_is_used_only_by_recipes_that_need_it(monkeypatch, fails, model_folder, token_file):
    class Bundled:
        def check_model(self, *_: object) -> None:
            raise ValueError("fitted for other weights")

    def measure(*_: object, calibration: object, **__: object) -> None:
        raise ValueError(f"measured with {calibration}")

    monkeypatch.setattr(run_eval, "DEMO", str(model_folder))
    monkeypatch.setattr(run_eval, "load_calibration", lambda path: Bundled())
    monkeypatch.setattr(run_eval, "evaluate", measure)
    arguments = eval_arguments(model_folder, token_file, "--quiet", "--dtype", "float16", "--recipe", "int8")
    assert "measured with None" in fails(*arguments)
    assert "fitted for other weights" in fails(*arguments, "--recipe", "klt-2")


def test_unsupported_architecture(fails, model_folder, token_file, tmp_path):
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    message = "model_type='mamba' is not supported; supported: llama, qwen2, qwen3"
    assert message in fails(*eval_arguments(tmp_path, token_file, "--recipe", "int8"))
    assert message in fails("explain", "int8", "--model", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": "x"}, "head_dim='x' must be"),
        ({"head_dim": 0}, "head_dim=0 must be"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None must be"),
        ({"rope_scaling": "x"}, "rope_scaling='x' must be"),
    ],
)
def test_mistakes_in_a_model_config(fails, model_folder, tmp_path, change, message: str):
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert message in fails("explain", "int8", "--model", tmp_path)


def test_head_dimensions_that_do_not_exist(fails):
    for command in ("codecs", "recipes"):
        for head_dim in (0, -8):
            assert "Invalid value for '--head-dim'" in fails(command, "--head-dim", head_dim)


def test_tracebacks_on_request(monkeypatch):
    monkeypatch.setenv("KAKEYA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="there is no folder"):
        run(["explain", "int8", "--model", "/no/such/folder"])


def test_codecs_and_recipes_are_listed(capsys):
    assert run(["codecs", "--json"]) == 0
    codecs = {codec["name"]: codec for codec in json.loads(capsys.readouterr().out)}
    assert codecs["int8"]["bits_per_value"] == {"payload": 8.0, "all_in": 8.125}
    assert codecs["int4"]["options"]["group_size"] == 32
    assert run(["recipes", "--json", "--head-dim", "64"]) == 0
    recipes = {recipe["name"]: recipe for recipe in json.loads(capsys.readouterr().out)}
    assert set(recipes) == set(Recipe.names())
    assert recipes["int8"]["bits_per_value"]["all_in"] == 8.25
    for recipe in recipes.values():
        assert Recipe.parse(recipe["text"]) == Recipe.named(recipe["name"])
    assert run(["codecs"]) == 0
    assert run(["recipes", "--head-dim", "64"]) == 0
    text = capsys.readouterr().out
    assert "turboquant" in text
    assert "kakeya-pareto" in text


@pytest.mark.parametrize("recipe", ["int8,recent=20", "key=int4,value=kivi(bits=2),boundary=1"])
def test_explain_counts_the_bytes_of_a_real_cache(model_folder, tiny_config, capsys, recipe: str):
    (model_folder / "model.safetensors").rename(model_folder / "elsewhere")  # weights are not read
    try:
        assert (
            run(
                [
                    "explain",
                    recipe,
                    "--model",
                    str(model_folder),
                    "--context",
                    "700",
                    "--batch",
                    "3",
                    "--json",
                ]
            )
            == 0
        )
    finally:
        (model_folder / "elsewhere").rename(model_folder / "model.safetensors")
    report = json.loads(capsys.readouterr().out)
    cache = CompressedCache.init(tiny_config, Recipe.parse(recipe), batch_size=3, max_length=700, dtype=jnp.bfloat16)
    arrays = [(layer.sinks, layer.tail, layer.blocks) for pair in cache.layers for layer in (pair.key, pair.value)]
    held = [sum(leaf.nbytes for leaf in jax.tree.leaves(parts)) for parts in arrays]
    assert [stream["total"] for stream in report["streams"]] == held
    assert report["bytes"] == sum(held)
    assert report["dense_bytes"] == 2 * 2 * 2 * 2 * 32 * 700 * 3
    assert report["compression_ratio"] == pytest.approx(report["dense_bytes"] / sum(held))
    assert report["bits_per_value"]["all_in"] == accounting.report(cache).all_in_bits_per_value


def test_explain_prints_a_line_for_each_stream(model_folder, capsys):
    assert run(["explain", "int8", "--model", str(model_folder), "--context", "100"]) == 0
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if " int8 " in line]) == 4
    assert "nothing is coded at this context" in text


def test_demo_writes_results_and_plot(monkeypatch, model_folder, tmp_path, capsys):
    monkeypatch.setattr(demo, "DEMO", str(model_folder))
    monkeypatch.setattr(demo, "RECIPES", ("identity", "int8"))
    monkeypatch.setattr(demo, "CONTEXT", 512)
    monkeypatch.setattr(demo, "PASSAGES", 2)
    assert run(["demo", "--out", str(tmp_path / "demo")]) == 0
    captured = capsys.readouterr()
    assert "small bundled model" in captured.out
    assert "kl_vs_bits.png" in captured.err
    document = json.loads((tmp_path / "demo" / "results.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert [row["recipe"] for row in document["rows"]] == ["identity", "int8"]
    assert "small bundled model" in document["note"]
    assert (tmp_path / "demo" / "kl_vs_bits.png").read_bytes().startswith(b"\x89PNG")


def test_demo_measures_at_least_eight_named_recipes():
    assert len(set(demo.RECIPES)) >= 8
    assert set(demo.RECIPES) <= set(Recipe.names())


def test_doctor_finds_what_is_broken(monkeypatch, capsys):
    def broken() -> tuple[str, str]:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(doctor, "codec_names", lambda: ("int8",))
    monkeypatch.setattr(doctor, "_bundled_model", lambda: (doctor.PASS, "there"))
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    assert {check["status"] for check in report["checks"]} <= {"PASS", "NOTE"}
    assert {"packages", "devices", "codec int8", "cache and attention"} <= {c["name"] for c in report["checks"]}
    assert report["environment"]["backend"] == jax.devices()[0].platform
    monkeypatch.setattr(doctor, "_cache", broken)
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAIL" in text
    assert "RuntimeError: no luck" in text


@pytest.mark.parametrize("name", codec_names())
def test_doctor_passes_every_codec(name: str):
    check = doctor._check("codec", lambda: doctor._codec(name))
    assert check.status == doctor.PASS, check.detail


def test_doctor_notices_a_codec_that_destroys_values(monkeypatch):
    monkeypatch.setattr(doctor, "round_trip", lambda codec, block: 0 * block)
    assert doctor._check("codec", lambda: doctor._codec("int8")).status == doctor.FAIL
    monkeypatch.setattr(doctor, "round_trip", lambda codec, block: jnp.nan * block)
    assert doctor._check("codec", lambda: doctor._codec("int8")).status == doctor.FAIL


def test_bench_encode(capsys):
    sizes = ["--vectors", "512", "--head-dim", "64", "--repeats", "1"]
    assert run(["bench", "encode", "--codec", "int8", *sizes, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [row["codec"] for row in report["rows"]] == ["int8"]
    assert report["rows"][0]["vectors_per_second"] > 0
    assert "vectors/s" in captured.err


def test_module_and_help():
    done = subprocess.run(
        [sys.executable, "-m", "kakeya_jax.eval"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for command in ("eval", "demo", "codecs", "recipes", "explain", "doctor", "bench"):
        assert f"\n  {command} " in done.stdout

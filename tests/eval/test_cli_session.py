"""A session saved by the command line goes on in another process as if it had never been saved."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.calibration.artifact import Calibration, ExactTokens, fingerprint, load_calibration
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models import checkpoint
from kakeya_jax.models.generate import generate
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe
from kakeya_jax.session_file import load_session, save_session, session_info

RECIPE = "klt-storage(bits=2,block_size=16),sinks=2,recent=8"
TOKENS = 44
"""In the cache are 43, with two coded pages; a third one is closed by the 16th token that is written."""

NEW, ROOM = 20, 70

pytestmark = pytest.mark.usefixtures("keep_environment")


@pytest.fixture(scope="module")
def calibration(tiny_model) -> Calibration:
    """Of the tiny model, from statistics that nobody measured."""
    model, params = tiny_model
    rng, config = np.random.default_rng(0), model.config
    heads, dim = config.num_kv_heads, config.head_dim

    def moment(count: int, size: int) -> np.ndarray:
        rows = rng.standard_normal((count, 4 * size, size)) * np.linspace(1.0, 0.1, size)
        return (np.swapaxes(rows, 1, 2) @ rows / rows.shape[1]).astype(np.float32)

    statistics = {}
    for layer in range(config.num_layers):
        for stream in ("key", "value"):
            mean = (0.1 * rng.standard_normal((heads, dim))).astype(np.float32)
            statistics[layer, stream] = {"mean": mean, "fisher.0": 1e-3 * moment(heads, dim)}
        statistics[layer, "both"] = {"covariance": moment(1, 2 * heads * dim)[0]}
    return Calibration(
        statistics=statistics,
        fitted={},
        exact=(ExactTokens(sinks=2, recent=8, page=16),),
        rope_frequencies=tuple(map(float, config.rope.frequencies)),
        rope_factor=1.0,
        shape=CacheShape.of(config),
        model=fingerprint(params),
        corpus=(),
        fisher="gradients",
        about={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder, calibration, tiny_tokens) -> Path:
    """With a calibration, the session ``saved``, what it was made of and the 20 tokens after that."""
    folder = tmp_path_factory.mktemp("sessions")
    calibration.save(folder / "tables")
    np.save(folder / "text.npy", tiny_tokens[:TOKENS])
    np.save(folder / "rest.npy", tiny_tokens[TOKENS : TOKENS + 20])
    arguments = ("save", model_folder, "--tokens", folder / "text.npy", "--recipe", RECIPE, "--max-length", ROOM)
    assert session(*arguments, "--calibration", folder / "tables", "--out", folder / "saved", "--quiet") == 0
    return folder


@pytest.fixture(scope="module")
def unbroken(folder: Path, tiny_model, calibration) -> list[int]:
    model, params = tiny_model
    return written_at_once(model, params, calibration, RECIPE, np.load(folder / "text.npy"), NEW)


def written_at_once(model: Any, params: Any, calibration: Calibration, recipe: str, text: Any, count: int) -> list[int]:
    """What ``generate`` writes after a text, without any file."""
    parsed, tokens = Recipe.parse(recipe), jnp.asarray(text)[None]
    cache = CompressedCache.init(
        model.config,
        parsed,
        batch_size=1,
        max_length=len(text) + count,
        dtype=jnp.float32,
        tables=calibration.tables_for(parsed),
    )
    _, cache = jax.jit(model.apply, donate_argnames="cache")({"params": params}, tokens[:, :-1], cache=cache)
    return np.asarray(generate(model, params, tokens[:, -1:], max_new_tokens=count, cache=cache).tokens[0]).tolist()


def session(*arguments: object) -> int:
    return run(["session", *map(str, arguments)])


@pytest.fixture
def go_on(folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def continued(path: Path, *arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        of = ("--model", model_folder, "--calibration", folder / "tables", "--json", "--quiet")
        assert session("continue", path, *of, "--max-new-tokens", *arguments) == 0
        return json.loads(capsys.readouterr().out)

    return continued


def test_in_parts_as_in_one_go(folder, unbroken, go_on, model_folder, tmp_path):
    whole = go_on(folder / "saved", NEW)
    assert (whole["tokens"], whole["length"], whole["size"]) == (unbroken, TOKENS + NEW, None)
    assert whole["text"] == load_tokenizer(model_folder).decode(unbroken)
    part = go_on(folder / "saved", 5, "--out", tmp_path / "part")
    assert (part["tokens"], part["size"]["file_nbytes"]) == (unbroken[:5], (tmp_path / "part").stat().st_size)
    info = session_info(tmp_path / "part")
    assert (info.lengths, info.pages[0], info.about["next_tokens"]) == ((TOKENS + 4,), (2,), unbroken[4:5])
    # Over the file that it was read from, and over the end of a page.
    assert go_on(tmp_path / "part", 12, "--out", tmp_path / "part")["tokens"] == unbroken[5:17]
    assert session_info(tmp_path / "part").pages == ((3,), (3,))
    assert go_on(tmp_path / "part", NEW - 17)["tokens"] == unbroken[17:]


@pytest.mark.slow
def test_the_bundled_model_s_session_goes_on_in_another_process(tmp_path, capsys):
    tokens = encode_text(bundled_text(), load_tokenizer("demo"))[:300]
    model, params = checkpoint.load("demo")
    expected = written_at_once(model, params, load_calibration(bundled_calibration()), "klt-storage-1", tokens, 12)
    (tmp_path / "text.txt").write_bytes(bundled_text().read_bytes()[:8000])
    text = ("--text", tmp_path / "text.txt", "--first", 300)
    assert session("save", "demo", *text, "--out", tmp_path / "saved", "--quiet") == 0
    assert "klt-storage-1" in capsys.readouterr().out
    first = ("session", "continue", tmp_path / "saved", "--model", "demo", "--out", tmp_path / "part")
    command = [sys.executable, "-m", "kakeya_jax.eval", *map(str, first), "--max-new-tokens", "5"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}  # eigenvectors of other last digits
    there = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    assert there.stdout == load_tokenizer("demo").decode(expected[:5]) + "\n"
    size = (tmp_path / "part").stat().st_size
    assert f"5 tokens, 305 in all; written: {tmp_path / 'part'}, {size:,} bytes" in there.stderr
    assert session("continue", tmp_path / "part", "--model", "demo", "--max-new-tokens", 7, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == expected[5:]


def test_draws_do_not_depend_on_the_parts(folder, go_on, tmp_path):
    drawn = ("--temperature", 1.5, "--seed", 3)
    whole = go_on(folder / "saved", 6, *drawn)["tokens"]
    part = go_on(folder / "saved", 2, *drawn, "--out", tmp_path / "part")["tokens"]
    assert part + go_on(tmp_path / "part", 4, *drawn)["tokens"] == whole
    assert go_on(folder / "saved", 6, "--temperature", 1.5)["tokens"] != whole


def test_more_text_may_follow(folder, unbroken, go_on, tmp_path):
    """The tokens that the model would write itself, given as text: the rest is the same."""
    np.save(tmp_path / "said.npy", np.array([*unbroken[:5], 0]))
    found = go_on(folder / "saved", NEW - 5, "--tokens", tmp_path / "said.npy", "--first", 5)
    assert (found["tokens"], found["length"]) == (unbroken[5:], TOKENS + NEW)
    assert go_on(folder / "saved", 5, "--tokens", folder / "rest.npy")["tokens"] != unbroken[:5]


def test_info_needs_no_model(folder, model_folder, capsys):
    capsys.readouterr()
    assert session("info", folder / "saved", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    size = (folder / "saved").stat().st_size
    assert (found["model"], found["lengths"], found["max_length"]) == (model_folder.name, [TOKENS - 1], ROOM)
    assert (found["file_nbytes"], found["coded_nbytes"] + found["exact_nbytes"]) == (size, size)
    assert found["coded_pages"] == [[2]] * 2
    assert found["bits_per_value"] == pytest.approx(8 * found["coded_nbytes"] / (2 * 32 * 4 * 32))
    assert found["compression_ratio"] == pytest.approx(2 * 4 * 32 * 2 * (TOKENS - 1) / size)
    assert Recipe.from_dict(found["recipe"]) == Recipe.parse(RECIPE)
    assert str(model_folder) not in json.dumps(found), "files travel: no paths"
    assert session("info", folder / "saved") == 0
    shown = capsys.readouterr().out
    assert f"{TOKENS - 1} of at most {ROOM}" in shown
    assert f"{size:,} bytes" in shown


def test_files_that_are_no_sessions_are_refused(folder, tmp_path, fails):
    whole = (folder / "saved").read_bytes()
    truncated, altered, foreign = (tmp_path / name for name in ("truncated", "altered", "foreign"))
    truncated.write_bytes(whole[:-100])
    altered.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    foreign.write_bytes(bundled_calibration().read_bytes())
    for path, message in (
        (truncated, "is not a readable session file (truncated, or of another kind)"),
        (altered, "was altered after it was written"),
        (foreign, "is a 'kakeya-calibration' file, not a kakeya-session file"),
        (tmp_path / "nothing", "does not exist"),
    ):
        assert message in fails("session", "info", path)
        assert message in fails("session", "continue", path, "--model", "demo")


def test_every_altered_part_shows_in_info(folder, tmp_path):
    """Pages and exact tokens, not only what ``info`` shows: a bit in each fiftieth of the file."""
    whole = (folder / "saved").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in np.linspace(header, len(whole) - 1, 50).astype(int):
        (tmp_path / "altered").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="was altered after it was written"):
            session_info(tmp_path / "altered")


def test_other_models_and_tables_are_refused(folder, model_folder, tmp_path, fails, calibration):
    def refused(path: Path, model: object = model_folder, tables: Path = folder / "tables") -> str:
        return fails("session", "continue", path, "--model", model, "--calibration", tables, "--max-new-tokens", 1)

    assert "fitted for a model of num_layers=2" in refused(folder / "saved", "demo")
    assert "fitted for a model of num_layers=8" in refused(folder / "saved", tables=bundled_calibration())
    assert f"is a session of {model_folder.name}, not of demo" in refused(
        folder / "saved", "demo", bundled_calibration()
    )
    assert "give --calibration FILE" in fails(
        "session", "continue", folder / "saved", "--model", model_folder, "--max-new-tokens", 1
    )
    info = session_info(folder / "saved")
    tables = calibration.tables_for(info.recipe)
    cache = load_session(folder / "saved", tables=tables)
    save_session(cache, tmp_path / "other", about={**info.about, "model": "m", "model_fingerprint": "f"})
    assert "is a session of m, not of" in refused(tmp_path / "other")
    save_session(cache, tmp_path / "python")
    assert "does not say which token comes next" in refused(tmp_path / "python")
    other = {where: {**named, "mean": named["mean"] + np.float32(1)} for where, named in tables.items()}
    shifted = CompressedCache.init(info.shape, info.recipe, batch_size=1, max_length=ROOM, tables=other)
    save_session(shifted, tmp_path / "shifted", about=info.about)
    assert "was coded with other tables" in refused(tmp_path / "shifted")


def test_wrong_options_are_one_line(folder, model_folder, tmp_path, fails):
    out = ("--out", tmp_path / "new")
    text = ("--tokens", folder / "text.npy")
    assert "no text" in fails("session", "save", "demo", *out)
    assert "not both" in fails("session", "save", "demo", *text, "--text", bundled_text(), *out)
    assert "one of klt-storage" in fails("session", "save", "demo", *text, *out, "--recipe", "klt-2")
    assert f"is less than the {TOKENS} tokens" in fails("session", "save", "demo", *text, *out, "--max-length", 10)
    assert f"has {TOKENS} tokens, 1000 are wanted" in fails("session", "save", "demo", *text, *out, "--first", 1000)
    assert "must be float32 or bfloat16" in fails("session", "save", "demo", *text, *out, "--dtype", "int8")
    assert "give --calibration FILE" in fails("session", "save", "some-model", *text, *out)
    assert "is a folder" in fails("session", "save", "demo", *text, "--out", tmp_path)
    saved = ("session", "continue", folder / "saved", "--model", model_folder)
    assert "--max-new-tokens 0 must be at least 1" in fails(*saved, "--max-new-tokens", 0)
    assert "--temperature -1 must not be negative" in fails(*saved, "--temperature", -1)
    assert f"room for {ROOM + 1} tokens, {TOKENS} of them taken" in fails(*saved, "--max-new-tokens", 28)
    assert "64 of them taken" in fails(*saved, "--tokens", folder / "rest.npy", "--max-new-tokens", 8)
    assert not list(tmp_path.iterdir())

"""Pretraining: it learns, it resumes exactly, it ignores half-written checkpoints, and what it exports loads back."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.pretrain import TrainingConfig, TrainState, main, rate_at, train
from kakeya_jax.rope import Rope

MODEL = ModelConfig(
    model_type="llama",
    vocab_size=32,
    hidden_size=32,
    intermediate_size=48,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    rope=Rope(head_dim=16),
    max_position_embeddings=32,
    tie_word_embeddings=True,
)
TRAINING = TrainingConfig(
    batch_size=4, length=32, warmup_steps=2, held_out=128, steps_per_call=5, checkpoint_every=10, dtype="float32"
)  # fmt: skip
STEPS = 30


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """A walk over 31 tokens that mostly steps by one: easy to predict, not from token frequencies."""
    steps = np.random.default_rng(0).choice([1, 2], size=4096, p=[0.9, 0.1])
    return (1 + np.cumsum(steps) % 31).astype(np.uint16)


@pytest.fixture(scope="module")
def run(tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Path]:
    out = tmp_path_factory.mktemp("run")
    return train(MODEL, TRAINING, tokens, out, steps=STEPS), out


def log_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_loss_falls_on_seen_and_held_out_tokens(run: tuple[TrainState, Path]) -> None:
    rows = log_of(run[1])
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["tokens"] == STEPS * TRAINING.batch_size * TRAINING.length
    assert rows[0]["loss"] > 3.0  # log(32) = 3.47 at the start
    assert rows[-1]["loss"] < 1.6
    held_out = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert len(held_out) == 3
    assert held_out[-1] < 1.6


class KilledError(Exception):
    pass


def kill_at(step: int) -> Any:
    def on_log(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KilledError

    return on_log


def test_a_killed_run_ends_with_the_same_parameters_and_log(
    run: tuple[TrainState, Path], tokens: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(MODEL, TRAINING, tokens, tmp_path, steps=STEPS, on_log=kill_at(25))
    assert log_of(tmp_path)[-1]["step"] == 25
    # What a kill in the middle of writing step 25 would leave: an unfinished folder, and one without its commit mark.
    half = tmp_path / "checkpoints" / "25.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "_METADATA").write_text("{")
    seen: list[int] = []
    resumed = train(MODEL, TRAINING, tokens, tmp_path, steps=STEPS, on_log=lambda row: seen.append(row["step"]))
    assert seen == [25, 30], "goes on after the checkpoint of step 20, not from the start and not from step 25"
    chex.assert_trees_all_equal(resumed, run[0])
    assert log_of(tmp_path) == log_of(run[1])
    assert not half.exists()


def test_a_process_killed_while_it_writes_resumes_exactly(
    run: tuple[TrainState, Path], tokens: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "tokens.npy", tokens)
    command = [sys.executable, "-m", "kakeya_jax.models.pretrain", *command_line(tmp_path, [tmp_path / "tokens.npy"])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["step"] == 20:  # its checkpoint is being written in the background
            break
    process.kill()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "model.safetensors").exists()
    resumed = train(MODEL, TRAINING, tokens, tmp_path / "out", steps=STEPS)
    chex.assert_trees_all_equal(resumed, run[0])
    assert log_of(tmp_path / "out") == log_of(run[1])


def test_a_finished_run_only_exports_again(run: tuple[TrainState, Path], tokens: np.ndarray) -> None:
    state, out = run
    weights = out / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    again = train(MODEL, TRAINING, tokens, out, steps=STEPS, on_log=kill_at(5))
    chex.assert_trees_all_equal(again, state)
    assert weights.read_bytes() == before


def test_the_export_is_the_rounded_parameters_and_loads_back(run: tuple[TrainState, Path]) -> None:
    state, out = run
    model, params = load(out, dtype="float32")
    assert model.config == MODEL
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), state.params)
    chex.assert_trees_all_equal(params, rounded)
    assert (out / "model.safetensors").stat().st_size < 2 * sum(x.size for x in jax.tree.leaves(params)) + 2048


def test_minutes_become_a_number_of_steps_that_reproduces_the_run(
    run: tuple[TrainState, Path], tokens: np.ndarray, tmp_path: Path
) -> None:
    # With this share of decay the rate is still constant when the number of steps is decided, after 20.
    config = dataclasses.replace(TRAINING, decay_fraction=0.2, seed=1)
    timed = train(MODEL, config, tokens, tmp_path / "timed", minutes=1e-5)
    rows = log_of(tmp_path / "timed")
    assert [row["total_steps"] for row in rows] == [None, None, None, 25, 25]
    assert rows[-1]["step"] == 25  # four timed calls of five steps, and the one that is always left
    counted = train(MODEL, config, tokens, tmp_path / "counted", steps=25)
    chex.assert_trees_all_equal(timed, counted)
    with pytest.raises(AssertionError):  # another seed gives other parameters
        chex.assert_trees_all_close(counted.params, run[0].params, atol=1e-2)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    config = dataclasses.replace(TRAINING, warmup_steps=10, decay_fraction=0.4)
    rates = [float(rate_at(jnp.int32(step), jnp.int32(100), config)) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert set(rates[10:60]) == {1.0}
    np.testing.assert_allclose(rates[60:], np.append(np.arange(40, 0, -1), 0) / 40, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {}, "give either steps or minutes"),
        ({}, {"steps": 30, "minutes": 1.0}, "give either steps or minutes"),
        ({}, {"steps": 7}, "multiple of steps_per_call=5"),
        ({"held_out": 5000}, {"steps": 30}, "held_out=5000 must be smaller"),
        ({"batch_size": 500}, {"steps": 30}, "give no batch of 500 windows"),
    ],
)
def test_wrong_arguments_are_refused(
    change: dict[str, Any], arguments: dict[str, Any], message: str, tokens: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(MODEL, dataclasses.replace(TRAINING, **change), tokens, tmp_path, **arguments)


def test_a_folder_with_another_run_is_refused(run: tuple[TrainState, Path], tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="run of 30 steps, not 60"):
        train(MODEL, TRAINING, tokens, run[1], steps=60)
    with pytest.raises(ValueError, match="another config"):
        train(MODEL, dataclasses.replace(TRAINING, z_loss=0.0), tokens, run[1], steps=STEPS)


def test_tokens_outside_the_vocabulary_are_refused(tokens: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token 99 is outside vocab_size=32"):
        train(MODEL, TRAINING, np.append(tokens, np.uint16(99)), tmp_path, steps=STEPS)


def test_checkpoints_fall_between_calls() -> None:
    with pytest.raises(ValueError, match="checkpoint_every=12 must be a multiple"):
        dataclasses.replace(TRAINING, checkpoint_every=12)


def test_the_command_line_gives_the_same_model(
    run: tuple[TrainState, Path], tokens: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    shards = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for shard, part in zip(shards, np.split(tokens, [1000]), strict=True):
        np.save(shard, part)
    main([*command_line(tmp_path, shards), "--tokenizer", str(tmp_path / "tokenizer.json")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == STEPS
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (run[1] / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def command_line(folder: Path, shards: list[Path]) -> list[str]:
    """The arguments of the run of the fixture, into ``folder / "out"``."""
    (folder / "model.json").write_text(json.dumps(MODEL.to_huggingface()))
    arguments = ["--config", str(folder / "model.json"), "--out", str(folder / "out"), "--steps", str(STEPS)]
    for name, value in dataclasses.asdict(TRAINING).items():
        arguments += [] if value is None else ["--" + name.replace("_", "-"), str(value)]
    return [*arguments, "--tokens", *map(str, shards)]

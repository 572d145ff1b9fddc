"""Train a small decoder from token shards.

    python -m kakeya_jax.models.pretrain --config demo.json --tokens tokens.npy --out DIR --minutes 8

The tokens stay on the device, and every batch is a function of the seed and the step; a killed run started
again with the same command goes on from its last checkpoint and ends with the parameters it would have had.
``DIR`` receives ``checkpoints/``, ``training.jsonl`` and, at the end, the model in Hugging Face layout, in
bfloat16.
"""

import argparse
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kakeya_jax.models import checkpoint
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.models.muon import muon_and_adam
from kakeya_jax.models.pretrain_data import batch_at, batches_per_epoch, load_tokens, split_held_out
from kakeya_jax.models.training_checkpoints import Progress, TrainingCheckpoints
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything but the data, the model and the number of steps that decides the trained parameters.

    Attributes:
        batch_size: windows in a step.
        length: tokens in a window.
        seed: of the initial parameters and of the order of the data.
        muon_rate: peak step of the matrices, see ``muon_and_adam``.
        adam_rate: peak step of everything else.
        weight_decay: of the matrices, relative to their step.
        z_loss: weight of the squared log-normaliser, which keeps logits from drifting.
        warmup_steps: steps of linear warm-up.
        decay_fraction: share of all steps, at the end, over which the rate falls linearly to zero.
        held_out: tokens at the end of the shards that are never trained on.
        steps_per_call: steps that run on the device between two returns to Python.
        checkpoint_every: steps between checkpoints; a multiple of ``steps_per_call``.
        dtype: of the computation; the parameters being trained are float32.
        attention: ``"cudnn"`` on a GPU; ``None`` works everywhere.
    """

    batch_size: int = 64
    length: int = 2048
    seed: int = 0
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.05
    z_loss: float = 1e-4
    warmup_steps: int = 100
    decay_fraction: float = 0.4
    held_out: int = 2**18
    steps_per_call: int = 50
    checkpoint_every: int = 1000
    dtype: str = "bfloat16"
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.steps_per_call:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} must be a multiple of steps_per_call={self.steps_per_call}"
            )
        if not 0.0 <= self.decay_fraction <= 1.0:
            raise ValueError(f"decay_fraction={self.decay_fraction} must lie between 0 and 1")


@pytree_dataclass
class TrainState:
    """What a step changes."""

    params: Any
    optimizer: Any
    step: Array


def train(
    model_config: ModelConfig,
    config: TrainingConfig,
    tokens: np.ndarray,
    out: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    on_log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> TrainState:
    """Trains, or goes on with what ``out`` holds, and writes the model to ``out``.

    Args:
        model_config: the decoder.
        config: how to train it.
        tokens: documents separated by id 0; the last ``config.held_out`` only measure.
        out: the folder to write to.
        steps: how many steps; a multiple of ``config.steps_per_call``.
        minutes: instead of ``steps``: as many as fit, compilation aside, decided once from the speed of the
            first ones. The number is logged; the same ``steps`` give the same parameters.
        on_log: called with every row of the log.

    Returns:
        The last state, its parameters in float32.

    Raises:
        ValueError: neither or both of ``steps`` and ``minutes``; tokens outside the vocabulary; or ``out``
            holds a run with another config.
    """
    train_part, held_out_part = (jnp.asarray(part) for part in split_held_out(tokens, config.held_out))
    _check(model_config, config, tokens, steps, minutes)
    model = Decoder(model_config, dtype=jnp.dtype(config.dtype), implementation=config.attention)
    run_config = {"model": model_config.to_huggingface(), "training": dataclasses.asdict(config)}
    with TrainingCheckpoints(out / "checkpoints", run_config) as checkpoints:
        state, progress = checkpoints.restore(functools.partial(_initial, model, config))
        total = progress.total_steps if progress.total_steps is not None else steps
        if steps is not None and total != steps:
            raise ValueError(f"{out} holds a run of {total} steps, not {steps}; use the same number or another folder")
        log = _Log(out / "training.jsonl", keep_steps=progress.step, on_log=on_log)
        step, seconds, call_times = progress.step, progress.seconds, []
        while total is None or step < total:
            call_started = time.monotonic()
            state, losses = train_steps(
                state, train_part, jnp.int32(_FAR if total is None else total),
                model=model, config=config,
            )  # fmt: skip
            loss = float(np.mean(losses))
            step += config.steps_per_call
            call_times.append(time.monotonic() - call_started)
            seconds += call_times[-1] if len(call_times) > 1 else 0.0  # the first call compiles
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss} before step {step}; use smaller rates")
            if total is None and minutes is not None and len(call_times) >= _TIMED_CALLS:
                total = step + _steps_that_fit(minutes * 60.0 - seconds, min(call_times[1:]), config)
            row: dict[str, Any] = {
                "step": step,
                "total_steps": total,
                "tokens": step * config.batch_size * config.length,
            }
            row |= {"seconds": round(seconds, 2), "loss": round(loss, 5)}
            if step % config.checkpoint_every == 0 or step == total:
                if len(held_out_part) > config.length:
                    row["held_out_loss"] = round(held_out_loss(state.params, held_out_part, model, config.length), 5)
                checkpoints.save(state, Progress(step=step, seconds=seconds, total_steps=total))
            log.write(row)
    export(out, model_config, state.params)
    return state


_FAR = 2**30
"""Stands for "not decided yet" where a number of steps is needed: the rate is still constant then."""
_TIMED_CALLS = 4
"""Calls before ``minutes`` becomes a number of steps; the first one, which compiles, does not count."""


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="state")
def train_steps(
    state: TrainState,
    tokens: Int[Array, " N"],
    total_steps: Int[Array, ""],
    *,
    model: Decoder,
    config: TrainingConfig,
) -> tuple[TrainState, Float[Array, " S"]]:
    """``config.steps_per_call`` steps on the device, and the cross-entropy of each in nats per token."""
    optimizer = _optimizer(config)

    def one(state: TrainState, _: None) -> tuple[TrainState, Array]:
        batch = batch_at(tokens, state.step, batch_size=config.batch_size, length=config.length, seed=config.seed)
        grads, loss = jax.grad(_objective, has_aux=True)(state.params, batch, model, config.z_loss)
        direction, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        rate = rate_at(state.step, total_steps, config)
        params = jax.tree.map(lambda p, d: p + rate * d, state.params, direction)
        return TrainState(params=params, optimizer=optimizer_state, step=state.step + 1), loss

    return jax.lax.scan(one, state, length=config.steps_per_call)


def rate_at(step: Int[Array, ""], total_steps: Int[Array, ""], config: TrainingConfig) -> Float[Array, ""]:
    """The share of the peak rates at a step: linear warm-up, constant, linear decay to zero."""
    done, total = step.astype(jnp.float32) + 1.0, total_steps.astype(jnp.float32)
    warm = done / max(config.warmup_steps, 1)
    left = (total + 1.0 - done) / jnp.maximum(total * config.decay_fraction, 1.0)
    return jnp.clip(jnp.minimum(warm, left), 0.0, 1.0)


def held_out_loss(params: Any, tokens: Int[Array, " N"], model: Decoder, length: int) -> float:
    """Mean cross-entropy in nats per token over the consecutive windows of ``length`` in ``tokens``."""
    count = (len(tokens) - 1) // length
    starts = jnp.arange(count, dtype=jnp.int32)[:, None] * length
    windows = tokens[starts + jnp.arange(length + 1, dtype=jnp.int32)].astype(jnp.int32)
    return float(_mean_loss(params, windows, model))


def export(out: Path, config: ModelConfig, params: Any) -> None:
    """Writes ``config.json`` and the weights, rounded to bfloat16, in Hugging Face layout."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    checkpoint.save(out, config, rounded)


def _check(
    model_config: ModelConfig,
    config: TrainingConfig,
    tokens: np.ndarray,
    steps: int | None,
    minutes: float | None,
) -> None:
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps or minutes")
    if steps is not None and (steps < 1 or steps % config.steps_per_call):
        raise ValueError(f"steps={steps} must be a positive multiple of steps_per_call={config.steps_per_call}")
    if int(tokens.max()) >= model_config.vocab_size:
        raise ValueError(
            f"token {tokens.max()} is outside vocab_size={model_config.vocab_size}; is the tokenizer another?"
        )
    batches_per_epoch(len(tokens) - config.held_out, config.batch_size, config.length)


def _steps_that_fit(seconds: float, seconds_per_call: float, config: TrainingConfig) -> int:
    calls = max(1, int(0.98 * seconds / seconds_per_call))  # 2 % for checkpoints and the held-out loss
    return calls * config.steps_per_call


def _optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    return muon_and_adam(muon_rate=config.muon_rate, adam_rate=config.adam_rate, weight_decay=config.weight_decay)


def _initial(model: Decoder, config: TrainingConfig) -> TrainState:
    params = model.init(jax.random.key(config.seed), jnp.zeros((1, 8), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return TrainState(params=params, optimizer=_optimizer(config).init(params), step=jnp.int32(0))


def _objective(params: Any, batch: Array, model: Decoder, z_loss: float) -> tuple[Array, Array]:
    loss, squared_normaliser = _losses(params, batch, model)
    return loss + z_loss * squared_normaliser, loss


def _losses(params: Any, batch: Int[Array, "B T+1"], model: Decoder) -> tuple[Array, Array]:
    """Mean cross-entropy, and mean squared log-normaliser."""
    output: Any = model.apply({"params": params}, batch[:, :-1])
    logits = output.logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum instead of a gather: its gradient is elementwise, not a scatter.
    is_target = jnp.arange(logits.shape[-1], dtype=batch.dtype) == batch[:, 1:, None]
    target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return jnp.mean(normaliser - target), jnp.mean(normaliser**2)


@functools.partial(jax.jit, static_argnames="model")
def _mean_loss(params: Any, windows: Int[Array, "B T+1"], model: Decoder) -> Array:
    return jnp.mean(jax.lax.map(lambda window: _losses(params, window[None], model)[0], windows))


class _Log:
    """A JSONL file that a resumed run goes on with; rows after its checkpoint are dropped."""

    def __init__(self, path: Path, *, keep_steps: int, on_log: Callable[[dict[str, Any]], None]) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= keep_steps]
        path.write_text("".join(line + "\n" for line in kept))
        self._path, self._on_log = path, on_log

    def write(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._on_log(row)


def main(arguments: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(
        prog="python -m kakeya_jax.models.pretrain", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="a Hugging Face config.json")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="shards, .npy or .npy.xz")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to put beside the weights")
    parser.add_argument("--out", type=Path, required=True)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float)
    for field in dataclasses.fields(TrainingConfig):
        kind = str if field.name in ("dtype", "attention") else type(field.default)
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default, help=" ")
    options = parser.parse_args(arguments)

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainingConfig)}
    model_config = ModelConfig.from_huggingface(json.loads(options.config.read_text()))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tokenizer:
        shutil.copyfile(options.tokenizer, options.out / "tokenizer.json")
    train(
        model_config,
        TrainingConfig(**chosen),
        load_tokens(options.tokens),
        options.out,
        steps=options.steps,
        minutes=options.minutes,
        on_log=lambda row: print(json.dumps(row), flush=True),
    )


if __name__ == "__main__":
    main()

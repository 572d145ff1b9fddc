"""Arguments that tests of several commands share."""

from pathlib import Path


def eval_arguments(model: object, tokens: object, *more: object) -> list[str]:
    arguments = ["eval", model, "--tokens", tokens, "--context", 128, "--passages", 2, "--warmup", 32, *more]
    return [str(argument) for argument in arguments]


def calibrate_arguments(model: object, out: Path, *more: object) -> list[str]:
    arguments = ["calibrate", model, "--out", out, "--context", 128, "--passages", 2, "--quiet", *more]
    return [str(argument) for argument in arguments]

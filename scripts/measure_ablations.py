"""Measures every ablation of one model in several processes and puts the results into one file.

python scripts/measure_ablations.py demo OUT
python scripts/measure_ablations.py MODEL_FOLDER OUT --tokens SCORED.npy --train TRAIN.npy [--processes N] [--dry-run]

OUT gets MODEL.json, which is what docs/results/ablations/ holds; beside it the calibration, and for each ablation its
own results and its finished cells. What is there already is not measured again: an interrupted run goes on. Ablations
that time something run in the end, one after the other.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys

from kakeya_jax.eval.ablations.registry import ABLATIONS
from kakeya_jax.eval.ablations.results import load_ablation_result
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import DEMO, find_folder
from kakeya_jax.whole_file import whole_file

TIMED = ("speed-ceiling", "rotated-values")
CALIBRATED = (
    *("kakeya-skeleton", "whitening", "centroids", "besicovitch-trilemma", "context", "retrieval", "trajectory"),
)
CELLS_OF_A_PART = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A ``kakeya`` command, and the file that says that it is done; None if it must always run."""

    arguments: tuple[str, ...]
    writes: pathlib.Path | None

    def run(self) -> int:
        """Its exit code; 0 at once if its file is there."""
        if self.writes is not None and self.writes.exists():
            return 0
        return subprocess.run([sys.executable, "-m", "kakeya_jax.eval", *self.arguments, "--quiet"]).returncode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """Commands that may run together, stage after stage; the last one after the other."""

    calibrate: tuple[Command, ...]
    uncalibrated: tuple[Command, ...]
    calibrated: tuple[Command, ...]
    whole: tuple[Command, ...]
    timed: tuple[Command, ...]

    def all(self) -> tuple[Command, ...]:
        """In the order in which they run."""
        return (*self.calibrate, *self.uncalibrated, *self.calibrated, *self.whole, *self.timed)


def main(arguments: list[str] | None = None) -> int:
    """Runs or prints all commands; 0 if all went well, 1 if one failed, 2 for wrong arguments."""
    options = _parse(arguments)
    stages = commands(options)
    if options.dry_run:
        for command in stages.all():
            print(shlex.join(["kakeya", *command.arguments]))
        print(f"# together: {_target(options)}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one GPU
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        first = [pool.submit(command.run) for command in (*stages.calibrate, *stages.uncalibrated)]
        ready = all(future.result() == 0 for future in first[: len(stages.calibrate)])
        then = [pool.submit(command.run) for command in stages.calibrated] if ready else []
        codes = [future.result() for future in (*first, *then)]
        if not any(codes):
            codes += list(pool.map(Command.run, stages.whole))
    if not any(codes):
        codes += [command.run() for command in stages.timed]
    failed = [command for command, code in zip(stages.all(), codes, strict=False) if code]
    for command in failed:
        print(f"failed: {shlex.join(['kakeya', *command.arguments])}", file=sys.stderr)
    if failed:
        return 1
    merge(options.out, options.names, _target(options))
    print(f"written: {_target(options)}")
    return 0


def commands(options: argparse.Namespace) -> Stages:
    """Every command of a run."""
    out, model = options.out, str(options.model)
    where: list[str] = []
    calibration = out / "calibration.safetensors"
    calibrate: tuple[Command, ...] = ()
    if options.tokens is not None:
        where = ["--tokens", str(options.tokens)]
        words = ("calibrate", model, "--tokens", str(options.train), "--no-joint", "--out", str(calibration))
        calibrate = (Command(arguments=words, writes=calibration),)
    parts: dict[bool, list[Command]] = {False: [], True: []}
    whole: dict[bool, list[Command]] = {False: [], True: []}
    for name in options.names:
        words = ["ablate", name, model, *where]
        if options.tokens is not None and name in CALIBRATED:
            words += ["--calibration", str(calibration), "--train", str(options.train)]
        words += ["--json", str(out / f"{name}.json")]
        whole[name in TIMED].append(Command(arguments=tuple(words), writes=out / f"{name}.json"))
        count = 1 if options.processes == 1 or name in TIMED else -(-_cells(options.model, name) // CELLS_OF_A_PART)
        if count > 1:
            parts[name in CALIBRATED] += [
                Command(arguments=(*words, "--part", f"{part}/{count}"), writes=None) for part in range(1, count + 1)
            ]
    return Stages(
        calibrate=calibrate,
        uncalibrated=tuple(parts[False]),
        calibrated=tuple(parts[True]),
        whole=tuple(whole[False]),
        timed=tuple(whole[True]),
    )


def merge(folder: pathlib.Path, names: list[str], target: pathlib.Path) -> None:
    """Writes the results of ablations in ``folder``, those that are there, into one file: ``{"ablations": [...]}``."""
    found = [path for name in names if (path := folder / f"{name}.json").is_file()]
    results = [load_ablation_result(path).to_dict() for path in found]
    if not results:
        raise FileNotFoundError(f"no results of ablations in {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as partial:
        partial.write_text(json.dumps({"ablations": results}, indent=1, allow_nan=False) + "\n")


def _cells(model: str, name: str) -> int:
    config = ModelConfig.from_folder(find_folder(DEMO) if model == DEMO else pathlib.Path(model))
    size = ABLATIONS[name].demo if model == DEMO else ABLATIONS[name].usual
    return len(ABLATIONS[name].cells(config, size.context))


def _target(options: argparse.Namespace) -> pathlib.Path:
    return options.out / f"{options.model if options.model == DEMO else pathlib.Path(options.model).name}.json"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="measure_ablations.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="a folder, or demo, the bundled model")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT")
    parser.add_argument("--tokens", type=pathlib.Path, metavar="FILE", help="tokens to score")
    parser.add_argument("--train", type=pathlib.Path, metavar="FILE", help="tokens to calibrate on")
    parser.add_argument("--names", nargs="+", default=list(ABLATIONS), choices=list(ABLATIONS), metavar="NAME")
    parser.add_argument("--processes", type=int, default=1, help="commands at a time [1]")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes {options.processes} must be at least 1")
    if options.model == DEMO:
        if options.tokens or options.train:
            parser.error("the bundled model has its own text and calibration; leave out --tokens and --train")
        return options
    if options.tokens is None or options.train is None:
        parser.error("give --tokens FILE to score and --train FILE to calibrate on")
    for path in (pathlib.Path(options.model) / "config.json", options.tokens, options.train):
        if not path.is_file():
            parser.error(f"{path} does not exist")
    return options


if __name__ == "__main__":
    sys.exit(main())

"""Measures every ablation of one model in several processes and puts the results into one file.

python scripts/measure_ablations.py demo OUT
python scripts/measure_ablations.py MODEL_FOLDER OUT --tokens SCORED.npy --train TRAIN.npy \\
    [--processes N] [--gpus N] [--dry-run]

OUT gets MODEL.json, which is what docs/results/ablations/ holds; beside it the calibration, and for each ablation its
own results, once its cells are finished, and these cells. What is there already is not measured again: an interrupted
run goes on, and what it has finished is put together. Ablations that time something run in the end, one after the
other.
"""

import argparse
import asyncio
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
SLOW = ("retrieval", "trajectory")
"""Those that begin, a process for each of their cells: they decode token by token."""

CELLS_OF_A_PART = 3
"""Of the others: a process compiles the dense model and fits tables before its first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A ``kakeya`` command, and the file that says that it is done; None if it must always run."""

    arguments: tuple[str, ...]
    writes: pathlib.Path | None

    def done(self) -> bool:
        """Whether its file is there."""
        return self.writes is not None and self.writes.exists()

    def run(self, gpu: int | None = None) -> int:
        """Its exit code; 0 at once if it is done. It sees only one GPU if one is named."""
        if self.done():
            return 0
        seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        words = [sys.executable, "-m", "kakeya_jax.eval", *self.arguments, "--quiet"]
        return subprocess.run(words, env=os.environ | seen).returncode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """An ablation: parts of its cells, which may run together, and then the whole, which makes its results."""

    name: str
    parts: tuple[Command, ...]
    whole: Command


def main(arguments: list[str] | None = None) -> int:
    """Runs or prints all commands; 0 if all went well, 1 if one failed, 2 for wrong arguments."""
    options = _parse(arguments)
    calibrate, jobs = commands(options)
    if options.dry_run:
        for command in (*calibrate, *(command for job in jobs for command in (*job.parts, job.whole))):
            print(shlex.join(["kakeya", *command.arguments]))
        print(f"# together: {_target(options)}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one GPU
    failed = asyncio.run(_run(calibrate, jobs, options.processes, options.gpus))
    for command in failed:
        print(f"failed: {shlex.join(['kakeya', *command.arguments])}", file=sys.stderr)
    if failed:
        return 1
    merge(options.out, options.names, _target(options))
    print(f"written: {_target(options)}")
    return 0


def commands(options: argparse.Namespace) -> tuple[tuple[Command, ...], tuple[Job, ...]]:
    """The calibration, if there is one to make, and the jobs in the order in which they begin."""
    out, model = options.out, str(options.model)
    where: list[str] = []
    calibration = out / "calibration.safetensors"
    calibrate: tuple[Command, ...] = ()
    if options.tokens is not None:
        where = ["--tokens", str(options.tokens)]
        words = ("calibrate", model, "--tokens", str(options.train), "--no-joint", "--out", str(calibration))
        calibrate = (Command(arguments=words, writes=calibration),)
    jobs = []
    for name in sorted(options.names, key=lambda name: (name in TIMED, name not in SLOW)):
        words = ["ablate", name, model, *where]
        if options.tokens is not None and name in CALIBRATED:
            words += ["--calibration", str(calibration), "--train", str(options.train)]
        result = out / f"{name}.json"
        words += ["--json", str(result)]
        size = 1 if name in SLOW else CELLS_OF_A_PART
        count = 1 if options.processes == 1 or name in TIMED else -(-_cells(options.model, name) // size)
        parts = [Command(arguments=(*words, "--part", f"{part}/{count}"), writes=None) for part in range(1, count + 1)]
        whole = Command(arguments=tuple(words), writes=result)
        jobs.append(Job(name=name, parts=tuple(parts) if count > 1 else (), whole=whole))
    return calibrate, tuple(jobs)


async def _run(calibrate: tuple[Command, ...], jobs: tuple[Job, ...], processes: int, gpus: int) -> list[Command]:
    """The commands that failed. An ablation's results are made as soon as its parts are there."""
    asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(processes))
    failed: list[Command] = []
    free: asyncio.Queue[int | None] = asyncio.Queue()  # a GPU for each process
    for process in range(processes):
        free.put_nowait(process % gpus if gpus > 1 else None)

    async def succeeds(command: Command) -> bool:
        gpu = await free.get()
        code = await asyncio.to_thread(command.run, gpu)
        free.put_nowait(gpu)
        if code:
            failed.append(command)
        return code == 0

    async def finish(job: Job) -> None:
        if job.whole.done() or (job.name in CALIBRATED and not all(await calibrated)):
            return
        if all(await asyncio.gather(*map(succeeds, job.parts))):
            await succeeds(job.whole)

    calibrated = asyncio.gather(*map(succeeds, calibrate))
    await asyncio.gather(calibrated, *(finish(job) for job in jobs if job.name not in TIMED))
    for job in jobs:
        if job.name in TIMED and not failed:
            await finish(job)
    return failed


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
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that processes take turns with [1]")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes {options.processes} must be at least 1")
    if not 1 <= options.gpus <= options.processes:
        parser.error(f"--gpus {options.gpus} must be at least 1, and at most --processes {options.processes}")
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

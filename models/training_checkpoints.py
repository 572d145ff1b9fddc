"""Checkpoints of a training run: written atomically by orbax, restored from the last complete one."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

_State = TypeVar("_State")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        step: steps done.
        seconds: time spent in them.
        total_steps: how many there will be; ``None`` while not decided.
    """

    step: int = 0
    seconds: float = 0.0
    total_steps: int | None = None


class TrainingCheckpoints:
    """A folder with the last two checkpoints of one run.

    A checkpoint is written under a temporary name and renamed when it is complete, so a kill at any moment
    leaves the one before it in force.
    """

    def __init__(self, folder: Path, run_config: Mapping[str, Any]) -> None:
        """``run_config`` (JSON) is stored with every checkpoint; a run of another config is refused."""
        self._run_config = dict(run_config)
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def restore(self, initial: Callable[[], _State]) -> tuple[_State, Progress]:
        """The last complete checkpoint, or ``initial()`` where there is none.

        Raises:
            ValueError: the folder holds a run with another config.
        """
        latest = self._manager.latest_step()
        if latest is None:
            return jax.jit(initial)(), Progress()
        record = self._manager.restore(latest, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        if record["config"] != self._run_config:
            raise ValueError(f"{self._folder} holds a run with another config; use its config or another folder")
        shapes = jax.eval_shape(initial)
        restored = self._manager.restore(latest, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))
        return restored["state"], Progress(**record["progress"])

    def save(self, state: Any, progress: Progress) -> None:
        """Copies the state to the host and writes it in the background."""
        record = {"config": self._run_config, "progress": dataclasses.asdict(progress)}
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(record)),
        )

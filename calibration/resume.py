"""Unfinished calibrations on disk: what was summed so far, so that a killed run goes on where it was."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from kakeya_jax.whole_file import whole_file

FORMAT = "kakeya-unfinished-calibration"

LEAST_SECONDS = 30.0
"""Between two writings."""

_LARGEST_SHARE = 0.05
"""Of the time that may be spent on writing."""


@dataclasses.dataclass(kw_only=True)
class Resume:
    """A file that holds sums of an unfinished run, and what run it is of.

    Attributes:
        path: the file.
        run: what decides the sums: model, text and options; plain data. Sums of any other run are refused.
    """

    path: pathlib.Path
    run: Mapping[str, Any]
    _next_writing: float = dataclasses.field(default_factory=lambda: time.monotonic() + LEAST_SECONDS)

    def load(self, like: Any) -> tuple[int, Any] | None:
        """The steps done and the sums, as leaves of a tree like ``like``; None if there is no such file.

        Raises:
            ValueError: the file is of another run, or cannot be read; the message says what to do.
        """
        if not self.path.is_file():
            return None
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{self.path} is no readable unfinished calibration ({error}); delete it") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{self.path} is no unfinished calibration; move it away, or write to another --out")
        found = json.loads(metadata["run"])
        wanted = json.loads(json.dumps(self.run))
        differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{self.path} holds an unfinished calibration with {name}={_short(found.get(name))}, this one has "
                f"{_short(wanted.get(name))}; run that command again, or delete the file"
            )
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        return int(metadata["done"]), jax.tree.unflatten(structure, [arrays[_name(path)] for path, _ in leaves])

    def is_due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._next_writing

    def save(self, done: int, sums: Any) -> None:
        """Writes the sums after ``done`` steps; the file changes completely or not at all."""
        start = time.monotonic()
        arrays = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(sums)}
        metadata = {"format": FORMAT, "done": str(done), "run": json.dumps(self.run)}
        with whole_file(self.path) as partial:
            safetensors.numpy.save_file(arrays, partial, metadata=metadata)
        now = time.monotonic()
        self._next_writing = now + max(LEAST_SECONDS, (now - start) / _LARGEST_SHARE)

    def remove(self) -> None:
        """Deletes the file, if there is one: the run is finished."""
        self.path.unlink(missing_ok=True)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(part, "name", getattr(part, "idx", part))) for part in path)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."

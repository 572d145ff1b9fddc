"""Emulated copies that are done as late as a program allows: when it waits for them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from kakeya_jax.pallas_kernels.attention import emulated_ops


@dataclasses.dataclass
class _Group:
    """Copies of the threads that made a group of them, and those threads whose copies are not done yet."""

    waiting: np.ndarray
    copies: list[tuple[np.ndarray, tuple[Any, ...]]]


class LateCopies:
    """In place of the emulator's copies, which are done at once: a missing wait reads what was there before."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._out: list[tuple[np.ndarray, tuple[Any, ...]]] = []
        self._copy_out = emulated_ops.copy_out
        self.waits_out = 0
        patch.setattr(emulated_ops, "copy_out", lambda *copy: self._out.append((_active().copy(), copy)))
        patch.setattr(emulated_ops, "wait_for_copies_out", self._wait_out)
        self._groups: list[_Group] = []
        self._open: list[tuple[np.ndarray, tuple[Any, ...]]] = []
        self._copy = emulated_ops.copy
        self.waits = 0
        patch.setattr(emulated_ops, "copy", self._start)
        patch.setattr(emulated_ops, "commit_copies", self._commit)
        patch.setattr(emulated_ops, "wait_for_copies", self._wait)

    def _start(self, *copy: Any) -> None:
        self._open.append((_active().copy(), copy))

    def _commit(self) -> None:
        self._groups.append(_Group(_active().copy(), self._open))
        self._open = []

    def _wait(self, pending: int) -> None:
        """A thread's latest groups, ``pending`` of them, stay as they are."""
        self.waits += 1
        active, later = _active().copy(), np.zeros(_active().shape, int)
        for group in reversed(self._groups):
            done = group.waiting & active & (later >= pending)
            later += group.waiting
            group.waiting = group.waiting & ~done
            for threads, copy in group.copies:
                _with_active(threads & done, lambda copy=copy: self._copy(*copy))
        self._groups = [group for group in self._groups if group.waiting.any()]

    def _wait_out(self, *, read: bool = False) -> None:
        """Copies out of shared memory are read and done at the same time."""
        del read
        self.waits_out += 1
        active, left = _active().copy(), []
        for threads, copy in self._out:
            _with_active(threads & active, lambda copy=copy: self._copy_out(*copy))
            left += [(threads & ~active, copy)] if (threads & ~active).any() else []
        self._out = left


def _active() -> np.ndarray:
    return emulated_ops._launch.get().active


def _with_active(threads: np.ndarray, run: Any) -> None:
    launch = emulated_ops._launch.get()
    outer, launch.active = launch.active, threads
    if threads.any():
        run()
    launch.active = outer

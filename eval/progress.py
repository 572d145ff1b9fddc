"""Progress on stderr: a bar with the time left in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 15.0
"""Least time between two plain lines."""


@contextlib.contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Callable[[float, int, str], None]]:
    """Yields what ``evaluate`` calls with steps done, steps in all, and what comes next; parts of a step count too."""
    console = Console(stderr=True)
    if quiet:
        yield lambda done, total, what: None
    elif console.is_terminal:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
    else:
        yield _plain_lines()


def _plain_lines() -> Callable[[float, int, str], None]:
    start = time.monotonic()
    last = -LINE_SECONDS

    def report(done: float, total: int, what: str) -> None:
        nonlocal last
        elapsed = time.monotonic() - start
        if elapsed - last < LINE_SECONDS and done < total:
            return
        last = elapsed
        left = f", about {elapsed / done * (total - done):.0f} s left" if 0 < done < total else ""
        print(f"[{int(done)}/{total}] {elapsed:.0f} s{left}: {what}", file=sys.stderr, flush=True)

    return report

"""What progress says about the time left, with a clock that the test turns."""

import re
from types import SimpleNamespace

import pytest

from kakeya_jax.eval import progress


class Clock:
    """A monotonic clock."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made))
    monkeypatch.setattr("rich.console.monotonic", made)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_plain_lines_say_how_long_the_rest_takes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_progress() as report:
        for seconds, done in ((0.0, 0), (20.0, 2), (31.0, 3), (36.0, 4), (54.0, 9), (60.0, 10)):
            clock.now = 500.0 + seconds
            report(done, 10, f"step {done}")
    assert capsys.readouterr().err.splitlines() == [
        "[0/10] 0 s: step 0",
        "[2/10] 20 s, about 80 s left: step 2",  # 10 s a step
        "[4/10] 36 s, about 54 s left: step 4",  # 9 s a step; the line before came within 15 s
        "[9/10] 54 s, about 6 s left: step 9",
        "[10/10] 60 s: step 10",  # the end is always said
    ]


def test_parts_of_a_step_count_for_the_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_progress() as report:
        for seconds, done in ((0.0, 0), (20.0, 0.4), (45.0, 1.5)):
            clock.now = 500.0 + seconds
            report(done, 2, "cell")
    assert capsys.readouterr().err.splitlines() == [
        "[0/2] 0 s: cell",
        "[0/2] 20 s, about 80 s left: cell",
        "[1/2] 45 s, about 15 s left: cell",
    ]


def test_the_bar_of_a_terminal_says_how_long_the_rest_takes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.show_progress() as report:
        for done in range(5):
            report(done, 10, f"step {done}")
            clock.now += 10.0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    last = shown.replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"4/10 0:00:50 left 0:01:00 step 4", last)  # 6 steps of 10 s


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_progress(quiet=True) as report:
        report(1, 1, "done")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")

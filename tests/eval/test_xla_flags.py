"""The option of XLA that commands set."""

import importlib.metadata
import os

import pytest

from kakeya_jax.eval.xla_flags import HANGS, avoid_hangs


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (None, f"{HANGS}=false"),
        ("--xla_gpu_autotune_level=0", f"--xla_gpu_autotune_level=0 {HANGS}=false"),
        (f"{HANGS}=true", f"{HANGS}=true"),
    ],
)
def test_flags_keep_what_they_said(monkeypatch: pytest.MonkeyPatch, flags: str | None, expected: str):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    avoid_hangs()
    assert os.environ["XLA_FLAGS"] == expected


def test_versions_that_may_not_know_the_option_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.13.0")
    avoid_hangs()
    assert os.environ["XLA_FLAGS"] == ""

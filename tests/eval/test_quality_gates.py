"""The gates of decode steps: fixed, hashed, and one failing step fails the implementation."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import pytest

from kakeya_jax.eval import quality_gates
from kakeya_jax.eval.quality_gates import StepMetrics

GOOD = StepMetrics(
    logit_mse=np.full(5, 0.25),
    top_k_overlap=np.full(5, 0.8),
    same_argmax=np.ones(5, bool),
    layer_relative_l2=np.tile([0.0, 0.1, 9.0], (5, 1)),
)


def test_gates_are_those_of_the_issue_and_of_the_file():
    gates = quality_gates.load()
    assert (gates.largest_logit_mse, gates.top_k, gates.least_top_k_overlap) == (0.25, 10, 0.8)
    assert (gates.same_argmax, gates.largest_median_layer_relative_l2) == (True, 0.1)
    assert gates.sha256 == hashlib.sha256(quality_gates.PATH.read_bytes()).hexdigest()
    shown = gates.to_dict()
    assert shown["sha256"] == gates.sha256
    assert "logit MSE <= 0.25, top-10 overlap >= 0.8, the same argmax" in shown["text"]


def test_limits_themselves_pass():
    judged = quality_gates.load().judge(GOOD)
    assert judged["implementation_passes"]
    assert judged["steps_passed"] == {"logit MSE": 5, "top-10": 5, "argmax": 5, "layer L2": 5, "all": 5}


@pytest.mark.parametrize(
    ("name", "bad", "gate"),
    [
        ("logit_mse", 0.2501, "logit MSE"),
        ("logit_mse", np.nan, "logit MSE"),
        ("top_k_overlap", 0.7, "top-10"),
        ("same_argmax", False, "argmax"),
        ("layer_relative_l2", 0.11, "layer L2"),
    ],
)
def test_one_bad_step_fails_the_implementation_and_no_other_step(name: str, bad: float, gate: str):
    values = getattr(GOOD, name).copy()
    values[3] = bad
    gates, metrics = quality_gates.load(), dataclasses.replace(GOOD, **{name: values})
    passed = gates.steps_passed(metrics)
    assert passed["all"].tolist() == [True, True, True, False, True]
    judged = gates.judge(metrics)
    assert judged["steps_passed"][gate] == judged["steps_passed"]["all"] == 4
    assert not judged["implementation_passes"]


def test_other_files_are_refused(tmp_path: pathlib.Path):
    path = tmp_path / "gates.json"
    path.write_text('{"largest_logit_mse": 1}')
    with pytest.raises(ValueError, match="no file of quality gates"):
        quality_gates.load(path)

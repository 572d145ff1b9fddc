"""Gates of single decode steps: fixed in a file before anything is measured, and named with its hash in every result.

A *step* passes if its own numbers do. An *implementation* passes only if every step that was measured does: nine of ten
good steps are a failure, and are reported as one, with the count.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from kakeya_jax.typing import Bool, Float

PATH = pathlib.Path(__file__).with_name("quality_gates.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """An approximate decode step beside the exact one; arrays ``[steps]``.

    Attributes:
        logit_mse: mean squared difference of the logits, over the vocabulary.
        top_k_overlap: share of the exact step's ``top_k`` likeliest tokens that are among the approximate one's.
        same_argmax: whether both have the same likeliest token.
        layer_relative_l2: ``[steps, layers]`` length of the error of a layer's attention output, after the output
            projection, over the length of the exact output *of the same inputs*.
    """

    logit_mse: Float[np.ndarray, " steps"]
    top_k_overlap: Float[np.ndarray, " steps"]
    same_argmax: Bool[np.ndarray, " steps"]
    layer_relative_l2: Float[np.ndarray, "steps layers"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityGates:
    """The limits, as the file has them, and the file's SHA-256."""

    largest_logit_mse: float
    top_k: int
    least_top_k_overlap: float
    same_argmax: bool
    largest_median_layer_relative_l2: float
    about: str
    sha256: str

    def steps_passed(self, metrics: StepMetrics) -> dict[str, Bool[np.ndarray, " steps"]]:
        """Which steps pass each gate, and ``"all"`` of them; numbers that are not finite never pass."""
        passed = {
            "logit MSE": metrics.logit_mse <= self.largest_logit_mse,
            f"top-{self.top_k}": metrics.top_k_overlap >= self.least_top_k_overlap,
            "argmax": metrics.same_argmax | (not self.same_argmax),
            "layer L2": np.median(metrics.layer_relative_l2, axis=1) <= self.largest_median_layer_relative_l2,
        }
        return passed | {"all": np.logical_and.reduce(list(passed.values()))}

    def judge(self, metrics: StepMetrics) -> dict[str, Any]:
        """Plain JSON: worst and median numbers, steps that pass, and whether the implementation does."""
        passed = self.steps_passed(metrics)
        median_l2 = np.median(metrics.layer_relative_l2, axis=1)
        return {
            "steps": len(metrics.logit_mse),
            "logit_mse": {"median": float(np.median(metrics.logit_mse)), "worst": float(metrics.logit_mse.max())},
            "top_k_overlap": {
                "median": float(np.median(metrics.top_k_overlap)),
                "worst": float(metrics.top_k_overlap.min()),
            },
            "argmax_agreement": float(metrics.same_argmax.mean()),
            "layer_relative_l2": {"median": float(np.median(median_l2)), "worst": float(median_l2.max())},
            "steps_passed": {name: int(each.sum()) for name, each in passed.items()},
            "implementation_passes": bool(passed["all"].all()),
        }

    def to_dict(self) -> dict[str, Any]:
        """The gates for a results file: the file's content, its hash, and one line of text."""
        limits = {name: value for name, value in dataclasses.asdict(self).items() if name != "sha256"}
        return {"file": limits, "sha256": self.sha256, "text": str(self)}

    def __str__(self) -> str:
        """One line for tables."""
        return (
            f"a step passes with logit MSE <= {self.largest_logit_mse:g}, top-{self.top_k} overlap >= "
            f"{self.least_top_k_overlap:g}{', the same argmax' if self.same_argmax else ''} and median over layers of "
            f"the relative L2 error after the output projection <= {self.largest_median_layer_relative_l2:g}; an "
            "implementation passes if all steps do"
        )


@functools.cache
def load(path: pathlib.Path = PATH) -> QualityGates:
    """Reads the gates.

    Raises:
        ValueError: the file has other entries than the gates.
    """
    data = path.read_bytes()
    try:
        return QualityGates(**json.loads(data), sha256=hashlib.sha256(data).hexdigest())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of quality gates: {error}") from None

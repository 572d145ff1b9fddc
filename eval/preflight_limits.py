"""Where a pre-flight says FAIL: every threshold of ``kakeya doctor --model M --recipe R``, in one place.

A recipe fails if what was measured on the passages is beyond ``BROKEN``, and is warned of beyond ``SOUND``. Where a
model has what a family of methods is known to break on, it fails beyond ``AT_RISK`` already: a short text is kinder
than use, and such failures grow with the context.

Where the numbers come from: tests/eval/test_preflight.py holds ``BROKEN`` and ``SOUND`` against every row of the
committed tables; docs/tools.md has what ``AT_RISK`` was set by.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The worst that passes.

    Attributes:
        max_kl: mean KL, nats.
        min_top1: top-1 agreement, a fraction.
    """

    max_kl: float
    min_top1: float

    def met(self, kl: float, top1: float) -> bool:
        """Whether both are; a number that is not finite never is."""
        return kl <= self.max_kl and top1 >= self.min_top1

    def __str__(self) -> str:
        return f"KL <= {self.max_kl:g}, top-1 >= {100 * self.min_top1:g} %"


SOUND = Limits(max_kl=0.01, min_top1=0.95)
AT_RISK = Limits(max_kl=0.002, min_top1=0.97)
BROKEN = Limits(max_kl=0.05, min_top1=0.85)

OUTLIER_RATIO = 12.0
"""A channel (of keys, a rotary pair) so many times the median one of its head is an outlier channel. Measured: at most
6 on the bundled and the house models as they are; 23 and 92 on the bundled one with channels 8 and 32 times larger."""

LOW_KEY_BITS = 2.5
"""Payload bits of keys up to which uncalibrated codecs are at risk where keys are normalised for each head (Qwen3):
such norms have learned scales, and logits are large."""

WORST_CONDITION = 1e4
"""Condition of the queries' second moment beyond which whitening without a bound (``max_condition``) is at risk."""

FLOAT16_LARGEST = 65504.0
"""Scales and norms are stored as float16."""

LAYER_SHARE = 3.0
"""A layer with so many times the mean error of all layers is at risk."""

LEAST_SCORED = 1000
"""Fewer scored tokens than this are named as too few."""

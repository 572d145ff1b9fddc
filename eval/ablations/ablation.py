"""What an ablation is: a question, whose claim it checks, and the cells that answer it. Data; ``run`` measures it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Int

Row = dict[str, Any]
"""Plain JSON of one cell's results, with its ``"label"``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much text a cell is measured on; ``None`` passages: as many as score ``LEAST_SCORED`` tokens."""

    context: int
    passages: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What every cell of an ablation is measured on.

    Attributes:
        model, params: the decoder.
        tokens: the text ``[n]``.
        context: tokens of a passage.
        passages: how many, evenly spaced.
        calibration: of the model, from other text; None without one.
    """

    model: Any
    params: Any
    tokens: Int[np.ndarray, " n"]
    context: int
    passages: int | None
    calibration: Calibration | None = None


class Cell(Protocol):
    """One row of an ablation."""

    @property
    def label(self) -> str:
        """Its name in the table."""
        ...

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that is measured, whose tables calibration must have; None if it needs none."""
        ...

    def request(self) -> dict[str, Any]:
        """What tells this cell from others measured on the same setup; plain JSON."""
        ...

    def measure(self, setup: Setup) -> Row:
        """Measures it; plain JSON, ``None`` for numbers that are not finite. ``"tokens_scored"`` must be there."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table: its title, and its text for a row of the results."""

    title: str
    text: Callable[[Row], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question.

    Attributes:
        name: what ``kakeya ablate`` calls it.
        question: in one sentence.
        claims: what the sources say, each with the source.
        cells: its cells for a model and a context, in the order of the table.
        columns: of the table.
        baseline: label of the row that others are compared with, passage by passage; None for none.
        findings: sentences made from the rows, by label; numbers of this run and no other.
        notes: how to read the table.
        demo: size for the bundled model.
        usual: size for other models.
        seconds: of one cell at the demo's size on two quiet cores, roughly; for ``--list``.
        gates: whether rows are judged by the gates of ``kakeya_jax.eval.quality_gates``.
    """

    name: str
    question: str
    claims: tuple[str, ...]
    cells: Callable[[ModelConfig, int], tuple[Cell, ...]]
    columns: tuple[Column, ...]
    baseline: str | None = None
    findings: Callable[[Mapping[str, Row]], list[str]] = lambda rows: []
    notes: tuple[str, ...] = ()
    demo: Size = Size(context=2048, passages=4)
    usual: Size = Size(context=4096, passages=None)
    seconds: float = 15.0
    gates: bool = False

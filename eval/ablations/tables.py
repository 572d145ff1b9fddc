"""Calibrated tables of an ablation's recipes: from a calibration, and fitted to training text where it lacks some."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kakeya_jax.calibration.artifact import Calibration, load_calibration, text_hash, text_windows
from kakeya_jax.calibration.codec_tables import fit_codec_tables
from kakeya_jax.calibration.tables import serves
from kakeya_jax.eval.ablations.ablation import Cell
from kakeya_jax.eval.text import check_vocabulary, cut_passages
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Int

FIT_CONTEXT = 2048
FIT_PASSAGES = 12
"""Training text that tables of single codecs are fitted to: at most so many passages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """What an ablation's recipes may use.

    Attributes:
        model, params: the decoder.
        calibration: statistics of it; None if no recipe needs any.
        train: passages of training text, to fit what the calibration lacks; None if it lacks nothing.
    """

    model: Any
    params: Any
    calibration: Calibration | None
    train: Int[np.ndarray, "N T"] | None

    @classmethod
    def of(
        cls,
        name: str,
        path: Path | None,
        model: Any,
        params: Any,
        cells: Sequence[Cell],
        train: Int[np.ndarray, " n"] | None,
    ) -> "Tables":
        """Reads the calibration, if a cell needs one, and cuts the training text, if it lacks something.

        Args:
            name: of the ablation, for messages.
            path: of the calibration; None if there is none.
            model: the decoder.
            params: its parameters.
            cells: all that may be measured.
            train: tokens of training text; None if there are none.

        Raises:
            ValueError: there is no calibration, it is of another model, or it lacks tables and there is no training
        text."""
        needed = _recipes(cells)
        if not needed:
            return cls(model=model, params=params, calibration=None, train=None)
        if path is None:
            raise ValueError(
                f"ablation {name} needs a calibration; make one with `kakeya calibrate MODEL --tokens TRAIN.npy "
                "--out FILE` and give it as --calibration FILE"
            )
        calibration = load_calibration(path, model.config, params)
        missing = [recipe for recipe in needed if not serves(calibration, recipe)]
        if not missing:
            return cls(model=model, params=params, calibration=calibration, train=None)
        if train is None:
            raise ValueError(
                f"ablation {name} needs tables that the calibration lacks, such as those of {missing[0].to_text()!r}; "
                "give training text to fit them to as --train TRAIN.npy"
            )
        check_vocabulary(train, model.config.vocab_size)
        context = min(FIT_CONTEXT, len(train))
        passages = cut_passages(train, context, min(FIT_PASSAGES, len(train) // context))
        return cls(model=model, params=params, calibration=calibration, train=passages)

    def check_text(self, tokens: Int[np.ndarray, " n"]) -> None:
        """Raises a ``ValueError`` if text that is scored was calibrated on or fitted to."""
        if self.calibration is not None:
            trained = () if self.train is None else text_windows(self.train)
            corpus = (*self.calibration.corpus, *trained)
            dataclasses.replace(self.calibration, corpus=corpus).check_text(tokens)

    def about(self, cell: Cell) -> dict[str, Any] | None:
        """Where a cell's tables come from; None if it needs none."""
        if self.calibration is None or not _recipes([cell]):
            return None
        about = {
            name: self.calibration.about[name] for name in ("tokens", "corpus_hash") if name in self.calibration.about
        }
        if self.train is not None and not serves(self.calibration, _recipes([cell])[0]):
            about |= {"fitted_tokens": int(self.train.size), "fitted_hash": text_hash(self.train)}
        return about

    def about_all(self, cells: Sequence[Cell]) -> dict[str, Any] | None:
        """``about`` of all cells together."""
        found = [about for cell in cells if (about := self.about(cell)) is not None]
        return {name: value for about in found for name, value in about.items()} if found else None

    def fitted_for(self, cells: Sequence[Cell]) -> Calibration | None:
        """The calibration with all tables that these cells need."""
        if self.calibration is None or self.train is None:
            return self.calibration
        missing = [recipe for recipe in _recipes(cells) if not serves(self.calibration, recipe)]
        fitted = fit_codec_tables(self.model, self.params, self.train, missing, self.calibration)
        return dataclasses.replace(self.calibration, fitted={**self.calibration.fitted, **fitted})


def _recipes(cells: Sequence[Cell]) -> list[Recipe]:
    """The recipes that need calibration."""
    return [cell.recipe for cell in cells if cell.recipe is not None and cell.recipe.needs_calibration]

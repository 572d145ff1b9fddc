"""The calibrated tables of a recipe, for commands that take a model and ``--calibration FILE``."""

from pathlib import Path
from typing import Any

from kakeya_jax.cache import Tables
from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.demo import bundled_calibration
from kakeya_jax.eval.environment import one_blas_thread
from kakeya_jax.models.locate import DEMO
from kakeya_jax.recipe import Recipe


def recipe_tables(recipe: Recipe, name: str, path: Path | None, model: Any, params: Any) -> Tables | None:
    """Tables from the calibration file, or from the bundled one of the bundled model; None if the recipe needs none.

    Args:
        recipe: whose tables.
        name: of the model, as on the command line.
        path: of the calibration; None if there is none.
        model: the decoder, and
        params: its parameters, which the calibration must be of.

    Raises:
        ValueError, OSError: there is no calibration, or it is of another model; the message is one line.
    """
    if not recipe.needs_calibration:
        return None
    path = path or (bundled_calibration() if name == DEMO else None)
    if path is None:
        raise ValueError(f"recipe {str(recipe)!r} needs --calibration FILE, from kakeya calibrate {name}")
    with one_blas_thread():
        return load_calibration(path, model.config, params).tables_for(recipe)

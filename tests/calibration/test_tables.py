"""What a calibration has tables for."""

import dataclasses

import numpy as np
import pytest

from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.tables import UnservedError, serves
from kakeya_jax.recipe import Recipe

PAIRS = Recipe.parse("both=klt(bits=2,block_size=16,heads_together=2)")
THREES = Recipe.parse("both=klt(bits=2,block_size=16,heads_together=3)")


def test_what_a_calibration_lacks_is_not_served(calibration: Calibration) -> None:
    apart = {where: found for where, found in calibration.statistics.items() if where[1] != "both"}
    without_joint = dataclasses.replace(calibration, statistics=apart)
    assert serves(calibration, PAIRS)
    assert not serves(without_joint, PAIRS)
    assert serves(without_joint, Recipe.named("klt-2"))
    assert not serves(calibration, Recipe.parse("key=kakeya(centroids=calibrated,block_size=16)"))
    with pytest.raises(UnservedError, match="without --no-joint"):
        without_joint.tables_for(PAIRS)


def test_heads_that_do_not_go_into_groups_are_not_served(calibration: Calibration) -> None:
    assert not serves(calibration, THREES)
    with pytest.raises(UnservedError, match="heads_together=3 must divide the model's 2 key/value heads"):
        calibration.tables_for(THREES)


def test_a_broken_calibration_is_an_error_and_not_an_absence(calibration: Calibration) -> None:
    broken = dict(calibration.statistics)
    broken[0, "key"] = {**broken[0, "key"], "covariance": np.full_like(broken[0, "key"]["covariance"], np.nan)}
    with pytest.raises(ValueError, match="not finite"):
        serves(dataclasses.replace(calibration, statistics=broken), Recipe.named("klt-2"))

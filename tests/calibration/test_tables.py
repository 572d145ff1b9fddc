"""What a calibration has tables for."""

import dataclasses

import numpy as np
import pytest

from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.tables import UnservedError, serves
from kakeya_jax.recipe import Recipe

OFFSET = 30_000.0
"""Of keys, in their root mean square deviation."""

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


@pytest.mark.parametrize("options", ["whiten=true", "static_mean=true,whiten=true"])
def test_keys_far_from_zero_are_whitened(calibration: Calibration, options: str) -> None:
    """A float16 holds them whitened, however far their mean is from zero; unless a rare one is out of its range."""
    found = calibration.statistics[0, "key"]
    heads, dim = found["mean"].shape
    spread = np.sqrt(np.einsum("kdd->kd", found["covariance"]))
    far = {**found, "mean": OFFSET * spread, "largest": (OFFSET + 4) * spread}
    rare = {**far, "largest": 1e6 * far["largest"], "count": np.float32(1e12)}
    recipe = Recipe.parse(f"key@pre=turboquant(bits=4,block_size=16,{options}),value=int8(block_size=16)")
    for statistics, whitened in ((found, True), (far, True), (rare, False)):
        changed = dataclasses.replace(calibration, statistics={**calibration.statistics, (0, "key"): statistics})
        maps = np.asarray(changed.tables_for(recipe)[0, "key"]["whitening"])
        assert (np.array_equal(maps, np.broadcast_to(np.eye(dim), (heads, dim, dim)))) != whitened


def test_a_broken_calibration_is_an_error_and_not_an_absence(calibration: Calibration) -> None:
    broken = dict(calibration.statistics)
    broken[0, "key"] = {**broken[0, "key"], "covariance": np.full_like(broken[0, "key"]["covariance"], np.nan)}
    with pytest.raises(ValueError, match="not finite"):
        serves(dataclasses.replace(calibration, statistics=broken), Recipe.named("klt-2"))

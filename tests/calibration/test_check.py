"""What ``--check`` finds in statistics that were spoilt on purpose."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from kakeya_jax.calibration import check
from kakeya_jax.calibration.artifact import Calibration


@pytest.fixture
def spoilt(calibration: Calibration) -> Calibration:
    """Layer 1's keys: a dead channel, a spike, one far above the others, and values beyond float16."""
    statistics = {
        where: {name: array.copy() for name, array in named.items()} for where, named in calibration.statistics.items()
    }
    key = statistics[1, "key"]
    key["covariance"][0, 3] = key["covariance"][0, :, 3] = 0.0
    key["mean"][0, 3] = key["largest"][0, 3] = 0.0
    key["largest"][0, 5] = 60 * np.sqrt(key["covariance"][0, 5, 5] + key["mean"][0, 5] ** 2)
    for name in ("mean", "largest"):
        key[name][1, 7] *= 3e4
    key["covariance"][1, 7] *= 3e4
    key["covariance"][1, :, 7] *= 3e4
    return dataclasses.replace(calibration, statistics=statistics)


def found(calibration: Calibration, layer: int, stream: str) -> check.StreamCheck:
    (one,) = [each for each in check.check(calibration).streams if (each.layer, each.stream) == (layer, stream)]
    return one


def test_a_sound_calibration_has_no_risks(calibration: Calibration):
    report = check.check(calibration)
    assert [(each.layer, each.stream) for each in report.streams] == [
        (layer, stream) for layer in range(2) for stream in ("key", "value")
    ]
    for each in report.streams:
        assert each.risks == each.dead == each.huge == ()
        assert 1 < each.covariance_condition < 1e6
        assert len(each.fisher_condition) == 2
        assert (each.query_condition is None) == (each.stream == "value")
    assert report.float16_safe
    assert report.warnings == ()
    assert report.windows == tuple(map(str, calibration.exact))
    assert report.header["fingerprint"] == calibration.model
    assert report.header["tokens"] == 400
    assert report.stability == calibration.about["stability"]


def test_losses_and_conditions_are_those_of_the_matrices(calibration: Calibration):
    named = calibration.statistics[0, "value"]
    each = found(calibration, 0, "value")
    for window in range(2):
        fisher = named[f"fisher.{window}"]
        expected = [np.trace(fisher[head] @ named["covariance"][head]) for head in range(2)]
        np.testing.assert_allclose(each.losses[window], expected, rtol=1e-5)
        conditions = [np.linalg.cond(matrix.astype(np.float64)) for matrix in fisher]
        assert each.fisher_condition[window] == pytest.approx(max(conditions), rel=1e-4)
    spread = check.check(calibration).loss_spread
    losses = [loss for one in check.check(calibration).streams for loss in one.losses[0]]
    assert spread[0] == pytest.approx(max(losses) / min(losses))


def test_spoilt_channels_are_listed(spoilt: Calibration):
    each = found(spoilt, 1, "key")
    assert each.dead == ((0, 3),)
    assert {(channel.head, channel.channel) for channel in each.huge} == {(0, 5), (1, 7)}
    assert dict.fromkeys(each.risks).keys() >= {"range", "dead", "huge", "condition"}
    assert each.covariance_condition > 1e7
    assert each.largest > 65504
    assert found(spoilt, 1, "value").risks == ()
    assert not check.check(spoilt).float16_safe


def test_the_stream_that_costs_most_is_named(calibration: Calibration):
    value = dict(calibration.statistics[0, "value"])
    value["fisher.1"] = 1e3 * value["fisher.1"]
    costly = dataclasses.replace(calibration, statistics={**calibration.statistics, (0, "value"): value})
    assert found(costly, 0, "value").risks == ("loss",)
    assert found(costly, 0, "key").risks == ()


def test_keys_are_measured_after_any_rotation(calibration: Calibration):
    named = calibration.statistics[0, "key"]
    reach = np.hypot(named["largest"][:, :8], named["largest"][:, 8:]).max()
    assert found(calibration, 0, "key").largest == pytest.approx(reach)
    stretched = dataclasses.replace(calibration, rope_factor=1.5)
    assert found(stretched, 0, "key").largest == pytest.approx(1.5 * reach)
    assert found(stretched, 0, "value").largest == calibration.statistics[0, "value"]["largest"].max()


def test_it_is_plain_data(spoilt: Calibration):
    shown = check.check(spoilt).to_dict()
    again = json.loads(json.dumps(shown, allow_nan=False))
    assert again["streams"][2]["dead"] == [[0, 3]]
    singular = copy.deepcopy(dict(spoilt.statistics))
    singular[0, "key"]["covariance"][:] = 0.0
    json.dumps(check.check(dataclasses.replace(spoilt, statistics=singular)).to_dict(), allow_nan=False)


def test_warnings_of_weak_calibrations(calibration: Calibration):
    rows = [{**calibration.about["stability"][0], "ratio": 4.2}]
    weak = dataclasses.replace(calibration, fisher="differences", about={**calibration.about, "stability": rows})
    first, second = check.check(weak).warnings
    assert "--no-backward" in first
    assert "4.2 times the expected loss on the other half" in second

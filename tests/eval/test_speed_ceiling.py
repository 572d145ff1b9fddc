"""The model of how fast decoding can become."""

import pytest

from kakeya_jax.eval.speed_ceiling import speedup


def test_published_case_and_limits():
    assert speedup(0.334, 0.0) == pytest.approx(1.5015, abs=1e-3)
    assert speedup(0.334, 1.0) == pytest.approx(1.0)
    assert speedup(0.0, 0.0, 0.1) == pytest.approx(1 / 1.1)
    assert speedup(0.5, 0.25, 0.125) == pytest.approx(1 / 0.75)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.1, 0), "p=1.1"), ((0.5, -1), "f=-1"), ((0.5, 0, -1), "h=-1"), ((1, 0), "nothing is left")],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        speedup(*arguments)

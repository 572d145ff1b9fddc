import pytest

from kakeya_jax.eval.gates import NAMED_GATES, Gate, Gates, parse_gates


@pytest.mark.parametrize(
    ("delta", "top1", "verdict"),
    [
        (0.0, 1.0, "ACCEPT"),
        (1.0, 0.95, "ACCEPT"),
        (-1.0, 0.95, "ACCEPT"),
        (1.01, 0.99, "MARGINAL"),
        (-1.01, 0.99, "MARGINAL"),
        (0.2, 0.949, "MARGINAL"),
        (3.0, 0.85, "MARGINAL"),
        (3.01, 0.99, "REJECT"),
        (-3.01, 0.99, "REJECT"),
        (0.0, 0.849, "REJECT"),
        (float("nan"), 1.0, "REJECT"),
        (float("inf"), 1.0, "REJECT"),
        (0.0, float("nan"), "REJECT"),
    ],
)
def test_default_thresholds(delta: float, top1: float, verdict: str):
    assert NAMED_GATES["default"].verdict(delta, top1) == verdict


@pytest.mark.parametrize(
    ("name", "delta", "top1", "verdict"),
    [
        ("star", 3.0, 0.85, "ACCEPT"),
        ("star", 3.0, 0.84, "MARGINAL"),
        ("star", 10.0, 0.74, "REJECT"),
        ("perplexity", 3.0, 0.1, "ACCEPT"),
        ("perplexity", -9.0, 0.1, "MARGINAL"),
        ("perplexity", 10.1, 1.0, "REJECT"),
        ("accept=0.5/98,marginal=2", 0.5, 0.98, "ACCEPT"),
        ("accept=0.5/98,marginal=2", 0.5, 0.97, "MARGINAL"),
        ("accept=0.5/98,marginal=2", 2.1, 1.0, "REJECT"),
    ],
)
def test_chosen_thresholds(name: str, delta: float, top1: float, verdict: str):
    assert parse_gates(name).verdict(delta, top1) == verdict


def test_thresholds_are_stated():
    assert str(NAMED_GATES["default"]) == (
        "gates 'default': ACCEPT: |dPPL| <= 1 %, top-1 >= 95 %; MARGINAL: |dPPL| <= 3 %, top-1 >= 85 %; else REJECT"
    )


@pytest.mark.parametrize("text", ["strict", "accept", "accept=1/95;marginal=3", "accept=-1", ""])
def test_unreadable_gates_name_the_choices(text: str):
    with pytest.raises(ValueError, match="default, star, perplexity"):
        parse_gates(text)


@pytest.mark.parametrize("text", ["accept=3/85,marginal=1/95", "accept=1/85,marginal=3/95", "accept=1/101"])
def test_gates_out_of_order_or_range_are_refused(text: str):
    with pytest.raises(ValueError, match=r"strict gate first|between 0 and 100"):
        parse_gates(text)


def test_gates_are_data():
    gate = Gate(verdict="OK", max_delta_ppl_percent=1.0)
    assert Gates(name="mine", gates=(gate,)) == Gates(name="mine", gates=(gate,))

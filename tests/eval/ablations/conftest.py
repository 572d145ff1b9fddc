"""A setup small enough that every kind of cell takes a second or two."""

import pytest

from kakeya_jax.eval.ablations.ablation import Setup


@pytest.fixture(scope="session")
def tiny_setup(tiny_model, tiny_tokens) -> Setup:
    model, params = tiny_model
    return Setup(model=model, params=params, tokens=tiny_tokens, context=192, passages=2)

"""Trellis codes: subsets are those of the machine with states, and the path that is found is the cheapest."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.trellis import CODES
from kakeya_jax.trellis_levels import CODE, fit_code_books, nearest_path, trellis_error, trellis_levels

WIDTHS = (1, 2, 3, 4, 5, 6)
each_code = pytest.mark.parametrize("states", CODES)


def subsets_by_hand(states: int, branches: tuple[int, ...]) -> list[int]:
    """From the last bits, kept one value after the other: parities of Ungerboeck's polynomials (1982, table I)."""
    low, high = {4: (0o2, 0o5), 8: (0o04, 0o13), 16: (0o04, 0o23), 32: (0o10, 0o45)}[states]
    window, found = 0, []
    for bit in branches:
        window = (window << 1 | bit) % (2 * states)
        found.append((window & low).bit_count() % 2 + 2 * ((window & high).bit_count() % 2))
    return found


@each_code
def test_subsets_are_those_of_the_machine_with_states(states: int) -> None:
    length = 7
    branches = np.array(list(itertools.product((0, 1), repeat=length)))
    expected = np.array([subsets_by_hand(states, tuple(run)) for run in branches])
    np.testing.assert_array_equal(CODES[states].subsets(jnp.asarray(branches.T)), expected.T)
    # Both branches of a value lead to subsets two apart, and any two values after the first choose among all four.
    assert (np.abs(expected[:, -1].reshape(-1, 2) @ [1, -1]) == 2).all()
    assert set(expected[:, -1]) == {0, 1, 2, 3}


@each_code
@pytest.mark.parametrize("length", [1, 2, 6])
def test_the_path_is_the_cheapest_of_all(states: int, length: int) -> None:
    cost = np.random.default_rng(length).random((length, 4, 5, 3)).astype(np.float32)
    found = np.asarray(jax.jit(CODES[states].best_branches)(jnp.asarray(cost)))
    chex.assert_shape(found, (length, 5, 3))
    for run in np.ndindex(5, 3):
        each = cost[:, :, *run]
        totals = {
            branches: sum(each[step, subset] for step, subset in enumerate(subsets_by_hand(states, branches)))
            for branches in itertools.product((0, 1), repeat=length)
        }
        assert tuple(found[:, *run].tolist()) == min(totals, key=totals.__getitem__)


def test_a_run_may_be_padded_at_its_end() -> None:
    cost = np.random.default_rng(0).random((9, 4, 20)).astype(np.float32)
    padded = np.concatenate([cost, np.zeros((5, 4, 20), np.float32)])
    found = np.asarray(CODE.best_branches(jnp.asarray(padded)))[:9]
    np.testing.assert_array_equal(found, CODE.best_branches(jnp.asarray(cost)))


@pytest.mark.parametrize("width", WIDTHS)
def test_levels_leave_the_error_that_is_typed(width: int) -> None:
    """Of other draws than those that levels and errors were made of."""
    levels = trellis_levels(width)
    assert len(levels) == 2 ** (width + 1)
    assert (np.diff(levels) > 0).all()
    np.testing.assert_array_equal(levels, -levels[::-1])
    draws = jax.random.normal(jax.random.key(7), (128, 4096))
    error = float(jnp.mean(jnp.square(draws - levels[nearest_path(draws, jnp.asarray(levels), CODE)])))
    assert error == pytest.approx(trellis_error(width), rel=0.01)


def test_more_states_leave_less() -> None:
    errors = {
        states: [error for _, error in fit_code_books(CODES[states], runs=256, widest=2)] for states in (4, 8, 16)
    }
    assert errors[4] > errors[8] > errors[16]
    # The smallest of these is beyond what any quantiser can do of 2 bits: 2 ** (-2 * 2).
    assert 2.0**-4 < errors[16][1] < errors[4][1] < 0.095


@pytest.mark.slow
def test_code_books_are_what_the_fit_finds() -> None:
    for width, (levels, error) in enumerate(fit_code_books(), 1):
        np.testing.assert_allclose(trellis_levels(width), levels, atol=0.002)
        assert error == pytest.approx(trellis_error(width), rel=0.002)

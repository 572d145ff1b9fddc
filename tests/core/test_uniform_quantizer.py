import numpy as np
import pytest

from kakeya_jax.uniform_quantizer import gaussian_statistics, step_of_rate, symbol_probabilities


def test_statistics_are_those_of_samples():
    x = np.random.default_rng(0).standard_normal(1_000_000)
    steps = np.array([0.3, 1.0, 2.5])
    held = gaussian_statistics(steps)
    for index, step in enumerate(steps):
        q = np.round(x / step) * step
        _, counts = np.unique(q, return_counts=True)
        p = counts / x.size
        assert held.bits[index] == pytest.approx(-np.sum(p * np.log2(p)), abs=0.004)
        least_squares, unbiased = np.mean(x * q) / np.mean(q * q), np.mean(x * x) / np.mean(x * q)
        assert held.gain[index] == pytest.approx(np.sqrt(least_squares * unbiased), rel=0.004)
        decoded = held.gain[index] * q
        share = np.mean(x * decoded)
        assert held.coherent[index] == pytest.approx((1 - share) ** 2, abs=1e-3)
        assert held.independent[index] == pytest.approx(np.mean((decoded - share * x) ** 2), abs=3e-3)


def test_fine_steps_follow_the_high_rate_limit_and_none_drops_everything():
    held = gaussian_statistics(np.array([0.05, np.inf]))
    assert held.bits[0] == pytest.approx(0.5 * np.log2(2 * np.pi * np.e) - np.log2(0.05), abs=1e-3)
    assert held.independent[0] == pytest.approx(0.05**2 / 12, rel=1e-2)
    assert (held.bits[1], held.gain[1], held.independent[1], held.coherent[1]) == (0, 0, 0, 1)


def test_probabilities_sum_to_one_and_end_where_they_should():
    p = symbol_probabilities(np.array([0.1, 1.0]), half=20, deviations=3.0)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert p[0, -1] == pytest.approx(2 * 0.0202, abs=1e-3)  # 20 steps of 0.1 reach 2.05 deviations
    symbols = np.arange(-20, 21)
    np.testing.assert_array_equal(p[1, :-1] > 0, np.abs(symbols) <= 3)
    assert p[1, 20] == pytest.approx(0.3829, abs=1e-4)


@pytest.mark.parametrize("bits", [0.2, 1.0, 4.0])
def test_step_of_rate_is_the_inverse_of_bits(bits: float):
    assert gaussian_statistics(np.array([step_of_rate(bits)])).bits[0] == pytest.approx(bits, abs=1e-6)

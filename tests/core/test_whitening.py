"""Whitened error is logit error, and the maps stay invertible whatever the statistics are."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.numeric import LIMIT
from kakeya_jax.whitening import logit_map, whitened_bound, whitening_tables

HEADS, DIM = 3, 32


def samples(seed: int, decay: float, n: int = 500) -> np.ndarray:
    """``[K, n, D]`` with a spectrum that falls by ``exp(-decay)`` from the first direction to the last."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(-decay * np.linspace(0, 1, DIM))
    basis = np.linalg.qr(rng.standard_normal((HEADS, DIM, DIM)))[0]
    return (rng.standard_normal((HEADS, n, DIM)) * spectrum) @ basis


def moment(vectors: np.ndarray) -> np.ndarray:
    return np.swapaxes(vectors, 1, 2) @ vectors / vectors.shape[1]


QUERIES, KEYS = samples(0, 4.0), samples(1, 2.0) * 5 + 3
LARGEST = np.abs(KEYS).max(axis=1)


def tables(query_moment: np.ndarray, **options: float) -> tuple[np.ndarray, np.ndarray]:
    found = whitening_tables(
        jnp.asarray(query_moment), key_moment=jnp.asarray(moment(KEYS)), key_largest=jnp.asarray(LARGEST), **options
    )
    assert set(found) == {"whitening", "unwhitening"}
    assert {table.dtype for table in found.values()} == {jnp.dtype(jnp.float32)}
    return np.asarray(found["whitening"]), np.asarray(found["unwhitening"])


def round_trip_error(whitening: np.ndarray, unwhitening: np.ndarray) -> float:
    keys = KEYS.astype(np.float32)
    back = keys @ whitening @ unwhitening
    return float(np.linalg.norm(back - keys) / np.linalg.norm(keys))


def singular() -> np.ndarray:
    """Queries that all point the same way."""
    direction = np.random.default_rng(2).standard_normal((HEADS, DIM, 1))
    return direction @ np.swapaxes(direction, 1, 2)


def test_whitened_error_is_logit_error() -> None:
    whitening, _ = tables(moment(QUERIES), ridge=1e-9)
    errors = np.random.default_rng(3).standard_normal((HEADS, 7, DIM))
    of_logits = np.einsum("knd,kmd->kmn", QUERIES, errors)
    of_keys = (errors @ whitening) ** 2
    ratio = (of_logits**2).mean(axis=-1) / of_keys.sum(axis=-1)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)


def test_whitened_keys_have_unit_scale() -> None:
    whitening, _ = tables(moment(QUERIES))
    np.testing.assert_allclose(((KEYS @ whitening) ** 2).mean(axis=(1, 2)), 1.0, rtol=1e-4)


@pytest.mark.parametrize(
    "query_moment",
    [
        pytest.param(moment(QUERIES), id="ordinary"),
        pytest.param(1e30 * moment(QUERIES), id="huge"),
        pytest.param(1e-30 * moment(QUERIES), id="tiny"),
        pytest.param(moment(samples(0, 30.0)), id="nearly singular"),
        pytest.param(singular(), id="singular"),
        pytest.param(np.zeros((HEADS, DIM, DIM)), id="zero"),
    ],
)
@pytest.mark.parametrize("max_condition", [None, 5.0])
def test_unwhitening_undoes_whitening(query_moment: np.ndarray, max_condition: float | None) -> None:
    whitening, unwhitening = tables(query_moment, **({} if max_condition is None else {"max_condition": max_condition}))
    condition = np.linalg.cond(whitening.astype(np.float64))
    # The moment arrives as float32: its smallest eigenvalue, the ridge, is off by some 1e-7 of the largest one.
    assert (condition <= (max_condition or np.sqrt(1 + DIM / 1e-3)) * (1 + 1e-3)).all()
    assert round_trip_error(whitening, unwhitening) <= 2**-24 * (2 + condition.max())
    np.testing.assert_allclose(((KEYS @ whitening) ** 2).mean(axis=(1, 2)), 1.0, rtol=1e-4)


def test_condition_bound_is_met_exactly_and_only_where_it_binds() -> None:
    free = logit_map(moment(QUERIES))
    assert (np.linalg.cond(free) > 10).all()
    np.testing.assert_allclose(np.linalg.cond(logit_map(moment(QUERIES), max_condition=10.0)), 10.0, rtol=1e-9)
    np.testing.assert_array_equal(logit_map(moment(QUERIES), max_condition=1e6), free)


def test_scale_of_the_queries_has_no_effect() -> None:
    for ours, theirs in zip(tables(moment(QUERIES)), tables(2.0**40 * moment(QUERIES)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_unknown_queries_give_a_plain_scale() -> None:
    whitening, _ = tables(np.zeros((HEADS, DIM, DIM)))
    rms = np.sqrt((KEYS**2).mean(axis=(1, 2)))
    np.testing.assert_allclose(whitening, np.eye(DIM) / rms[:, None, None], rtol=1e-5)


def test_bound_holds_and_is_reached() -> None:
    whitening, _ = tables(moment(QUERIES))
    bound = whitened_bound(whitening, LARGEST, moment(KEYS), np.inf)
    assert (np.abs(KEYS @ whitening).max(axis=(1, 2)) <= bound).all()
    worst = np.argmax(np.einsum("kd,kde->ke", LARGEST, np.abs(whitening)), axis=-1)
    key = LARGEST[0] * np.sign(whitening[0, :, worst[0]])
    assert (key @ whitening[0])[worst[0]] == pytest.approx(bound[0], rel=1e-5)


def test_no_one_key_has_more_than_the_energy_of_all() -> None:
    """Reached by a key that is alone in its direction, whatever its channels' largest magnitudes may add up to."""
    alone = np.zeros((HEADS, 40, DIM))
    alone[:, 3] = np.random.default_rng(4).standard_normal((HEADS, DIM))
    whitening, _ = tables(moment(QUERIES))
    found = whitened_bound(whitening, np.full((HEADS, DIM), 1e9), moment(alone), 40)
    np.testing.assert_allclose(found, np.abs(alone @ whitening).max(axis=(1, 2)), rtol=1e-9)
    ordinary = whitened_bound(whitening, np.full((HEADS, DIM), 1e9), moment(KEYS), KEYS.shape[1])
    assert (np.abs(KEYS @ whitening).max(axis=(1, 2)) <= ordinary).all()
    assert (ordinary < 1e3).all()


def test_heads_that_could_leave_the_range_are_left_as_they_are() -> None:
    largest = LARGEST.copy()
    whitening, unwhitening = tables(moment(QUERIES))
    bound = whitened_bound(whitening, LARGEST, moment(KEYS), np.inf)
    largest[1] *= 1.001 * LIMIT / bound[1]
    largest[2] *= 0.999 * LIMIT / bound[2]
    measured: dict[str, Any] = {"key_moment": jnp.asarray(moment(KEYS)), "key_largest": jnp.asarray(largest)}
    found = whitening_tables(jnp.asarray(moment(QUERIES)), **measured)
    np.testing.assert_array_equal(found["whitening"][1], np.eye(DIM))
    np.testing.assert_array_equal(found["unwhitening"][1], np.eye(DIM))
    for head in (0, 2):
        np.testing.assert_array_equal(found["whitening"][head], whitening[head])
        np.testing.assert_array_equal(found["unwhitening"][head], unwhitening[head])
    # What is known of their number tells that none can be so large.
    counted = whitening_tables(jnp.asarray(moment(QUERIES)), key_count=KEYS.shape[1], **measured)
    np.testing.assert_array_equal(counted["whitening"], whitening)


def test_keys_that_are_all_zero_are_no_division_by_zero() -> None:
    zero = jnp.zeros((HEADS, DIM, DIM))
    found = whitening_tables(jnp.asarray(moment(QUERIES)), key_moment=zero, key_largest=zero[0, :HEADS])
    assert round_trip_error(*(np.asarray(table) for table in found.values())) < 1e-4


def test_errors_say_what_to_do() -> None:
    good = jnp.asarray(moment(QUERIES))
    keys, largest = jnp.asarray(moment(KEYS)), jnp.asarray(LARGEST)
    with pytest.raises(ValueError, match="query_moment holds 1 values that are not finite"):
        whitening_tables(good.at[0, 0, 0].set(jnp.nan), key_moment=keys, key_largest=largest)
    with pytest.raises(ValueError, match=r"key_largest \(3, 16\) \[K, D\], of the same heads"):
        whitening_tables(good, key_moment=keys, key_largest=largest[:, :16])
    with pytest.raises(ValueError, match="key_largest has shape"):
        whitening_tables(good, key_moment=keys, key_largest=largest[0])
    with pytest.raises(ValueError, match="ridge=0 must be above 0"):
        logit_map(moment(QUERIES), ridge=0)
    with pytest.raises(ValueError, match="max_condition=1 must be above 1"):
        logit_map(moment(QUERIES), max_condition=1)
    with pytest.raises(ValueError, match="head 2 has eigenvalue"):
        logit_map(moment(QUERIES) - np.array([0, 0, 0.01])[:, None, None] * np.eye(DIM))
    with pytest.raises(ValueError, match="not a second moment"):
        logit_map(-moment(QUERIES))

"""The program that tries other quantisers inside klt starts from klt itself; its trellis takes the cheapest path."""

import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from script_modules import load_script

from kakeya_jax.codecs.klt import Klt, KltConfig
from kakeya_jax.stream import Geometry, Stream
from kakeya_jax.testing import synthetic_kv

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "explore_klt.py"
CONFIG = KltConfig(block_size=32)

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs a checkout")


@pytest.fixture(scope="module")
def script() -> Any:
    module = load_script("explore_klt")
    module.SEQUENCES = 100  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.fixture(scope="module")
def held() -> Klt:
    """Of two heads of 32 channels whose variances fall; 2 bits on average."""
    tables = CONFIG.neutral_tables(32, num_kv_heads=2)
    return CONFIG.build(32, tables=tables | {"variances": jnp.asarray(np.geomspace(1, 0.01, 64).reshape(2, 32))})


def trial(script: Any, held: Klt, text: str | None) -> Any:
    variant = script.Variant() if text is None else script.Variant.parse(text)
    errors = {width: script.klt_layout.distortion(width) for width in variant.widths}
    geometry = Geometry(sinks=0, recent=1, page=32, max_length=64)
    options = {"batch_size": 1, "num_kv_heads": 2, "head_dim": 32, "dtype": jnp.float32, "rope": "pre"}
    stream = Stream.init(held, geometry, **options)
    return script._trial(stream, np.asarray(held.widths), errors, variant).codec


def blocks() -> jax.Array:
    return jnp.stack([synthetic_kv(head, 32, 32, "key") for head in range(2)])


def test_as_it_is_is_klt(script, held):
    codec = trial(script, held, None)
    np.testing.assert_allclose(codec.decode(codec.encode(blocks())), held.decode(held.encode(blocks())), atol=1e-5)


@pytest.mark.slow
def test_a_trellis_has_less_error_in_the_same_bits(script, held):
    levels, error = script.trellis_levels(2)
    assert len(levels) == 8
    assert error < 0.8 * script.klt_layout.distortion(2)
    plain, better = trial(script, held, None), trial(script, held, "trellis")
    weights = np.asarray(held.variances)[:, None] * np.asarray(plain.width > 0)[:, None]
    errors = [np.sum(weights * np.asarray((each.encode(blocks()).values - blocks()) ** 2)) for each in (plain, better)]
    assert errors[1] < errors[0]


def test_the_path_is_the_cheapest_of_all(script):
    cost = np.random.default_rng(0).random((3, 6, 4))
    coded = np.array([True, True, False, True, True, True])
    found = np.asarray(script.best_path(jnp.asarray(cost), jnp.asarray(coded)))
    leads = {
        (int(script.FROM[to, branch]), to): int(script.SUBSET[to, branch]) for to in range(4) for branch in range(2)
    }
    steps = np.flatnonzero(coded)
    for row in range(3):
        totals = []
        for states in itertools.product(range(4), repeat=len(steps)):
            path = list(itertools.pairwise((0, *states)))
            if all(pair in leads for pair in path):
                totals.append(sum(cost[row, step, leads[pair]] for step, pair in zip(steps, path, strict=True)))
        assert len(totals) == 2 ** len(steps)
        assert cost[row, steps, found[row, steps]].sum() == pytest.approx(min(totals))


def test_parts_of_variants(script):
    found = script.Variant.parse("trellis+group=8+widths=2:4:6:8+gain=0.75+kappa=1:2")
    assert (found.trellis, found.group, found.widths, found.gain, found.kappa) == (
        True,
        8,
        (2, 4, 6, 8),
        0.75,
        (1.0, 2.0),
    )
    with pytest.raises(ValueError, match="'bits=3' is none of trellis, group=N"):
        script.Variant.parse("bits=3")

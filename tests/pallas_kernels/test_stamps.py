"""Stamps of where warps are, which measurements read."""

import functools
from types import ModuleType

import jax
import numpy as np
import pytest
from decode_steps import filled, step
from mosaic import needs_mosaic
from script_modules import SCRIPTS, load_script

from kakeya_jax.cache import LayerCache
from kakeya_jax.pallas_kernels.attention.program_counts import HeadShares
from kakeya_jax.pallas_kernels.attention.stamps import PLACES, stamped

RECIPE = "both=turboquant(bits=4,block_size=64),sinks=2,recent=128"
SHARES = HeadShares(3, 1, (2, 1))


def test_warps_are_one_place_after_the_other_and_one_program_ends_a_head():
    layer, query, positions = filled(RECIPE, 64, 4)
    with stamped() as found:
        out = step(layer, query, positions, splits=SHARES, interpret=True)
    np.testing.assert_array_equal(out, step(layer, query, positions, splits=SHARES, interpret=True))
    (stamps,) = found
    heads = layer.key.tail.shape[0] * layer.key.tail.shape[1]
    assert stamps.shape[1:] == (4, len(PLACES))
    stamps = np.asarray(stamps, np.float64)
    coded = stamps[: heads * SHARES.splits]
    without_first_tile = np.delete(coded[..., :-1], PLACES.index("first tile"), axis=-1)
    assert (np.diff(without_first_tile) > 0).all()
    first = coded[..., PLACES.index("first tile")]
    assert ((first == 0) | (first > coded[..., PLACES.index("queries")])).all()
    assert (first > 0).any()
    ends = stamps[..., PLACES.index("end")] > 0
    assert ends.all(axis=1).sum() == ends.any(axis=1).sum() == heads


def test_nothing_is_stamped_outside():
    layer, query, positions = filled(RECIPE, 64, 4)
    with stamped() as found:
        pass
    step(layer, query, positions, splits=1, interpret=True)
    assert not found


@pytest.fixture
def script() -> ModuleType:
    if not SCRIPTS.is_dir():
        pytest.skip("needs a checkout")
    return load_script("stamp_steps")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vast", "turboquant-4"), "no shape vast"),
        (("tiny", "turboquant-4", "six"), "six is not like 6, 6+4:20:2"),
        (("tiny", "turboquant-4"), "cpu runs no such kernels; run it on a GPU"),
    ],
)
def test_refusals_are_one_line(
    words: tuple[str, ...], message: str, script: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert script.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_report_counts_from_the_first_start_around_the_end_of_a_counter(script: ModuleType):
    stamps = np.zeros((2, 4, len(PLACES)), np.int64)
    stamps[:] = 2**32 - 1000 + 500 * np.arange(len(PLACES))  # the counter goes round at the third place
    stamps[1] += 100_000
    stamps[0, :, -1] = 0  # not the last of its head
    before = stamps - 10_000
    lines = script.report(*(np.asarray(each % 2**32, np.uint32).view(np.int32) for each in (before, stamps)))
    assert lines[0].startswith("2 programs; ")
    assert lines[1] == "1 programs that began at once: 0, 10, 50, 90, 100 %"
    numbers = {line[:13].strip(): [float(each) for each in line[13:].split()] for line in lines[2:] if line[0] == " "}
    assert numbers["end"] == [103.0] * 5
    later = [line for line in lines if "later" in line]
    assert later == ["1 programs that began later: 0, 10, 50, 90, 100 %"]


@pytest.mark.gpu
@needs_mosaic
def test_gpu_stamps():
    layer, query, positions = filled(RECIPE, 128, 4)

    @functools.partial(jax.jit, static_argnames="splits")
    def stamping(layer: LayerCache, query: jax.Array, positions: jax.Array, *, splits: HeadShares):
        with stamped() as found:
            out = step(layer, query, positions, splits=splits)
        return out, found

    out, (stamps,) = stamping(layer, query, positions, splits=SHARES)
    np.testing.assert_array_equal(out, jax.jit(step, static_argnames="splits")(layer, query, positions, splits=SHARES))
    found = np.asarray(stamps).astype(np.uint32)
    since = (found - found[..., :1]).astype(np.int32)
    heads = layer.key.tail.shape[0] * layer.key.tail.shape[1]
    everywhere = [PLACES.index(place) for place in ("state", "counted")]
    of_codes = [PLACES.index(place) for place in ("queries", "tiles")]  # programs of exact tokens have no such places
    visited = [since[..., everywhere], since[: heads * SHARES.splits][..., of_codes]]
    assert all((each >= 0).all() and each.max() < 10**9 for each in visited)

"""Places of a tile of keys in a stage: every byte where it is looked for, and no two lanes at one bank."""

import numpy as np
import pytest

from kakeya_jax.pallas_kernels.attention import emulated_ops
from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS, TILE
from kakeya_jax.pallas_kernels.attention.key_places import CHUNK, KeyPlaces

LANES = np.arange(32, dtype=np.uint32)


class _Lane:
    lane, row, column = LANES, LANES // 4, LANES % 4


@pytest.fixture(params=[(16, 4), (24, 4), (32, 8), (48, 8), (64, 16), (128, 32)], ids=str)
def places(request: pytest.FixtureRequest) -> tuple[KeyPlaces, int]:
    row, part = request.param
    with emulated_ops.launch(1, 1):
        return KeyPlaces(emulated_ops, _Lane(), row, part), part  # pyright: ignore[reportArgumentType]


def _flat(register: object) -> np.ndarray:
    return np.asarray(register).reshape(-1).astype(int)


def stage_of(places: KeyPlaces) -> np.ndarray:
    """For each byte of a stage, which byte of the tile is there."""
    stage = np.full(TILE * places.row, -1)
    for copy in range(len(stage) // (32 * CHUNK)):
        target, at = places.target(copy)
        for lane, where in enumerate(_flat(target) + at):
            stage[where : where + CHUNK] = (32 * copy + lane) * CHUNK + np.arange(CHUNK)
    return stage


def test_lanes_find_their_bytes(places: tuple[KeyPlaces, int]):
    found, part = places
    with emulated_ops.launch(1, 1):
        stage = stage_of(found)
        assert sorted(stage) == list(range(len(stage)))
        row = LANES.astype(int) // 4
        for product in range(PRODUCTS):
            for half in range(2):
                token = 16 * (row // 2) + 4 * product + 2 * (row % 2) + half
                for at in range(0, part, min(part, CHUNK)):
                    place, more = found.source(product, half, at)
                    expected = token * found.row + LANES % 4 * part + at
                    assert (stage[_flat(place) + more] == expected).all()


def test_a_chunk_of_any_number_goes_where_copies_in_runs_put_it(places: tuple[KeyPlaces, int]):
    found, _ = places
    with emulated_ops.launch(1, 1):
        stage = stage_of(found)
        for first in range(0, len(stage) // CHUNK, 32):
            places_of = _flat(found.chunk(LANES + np.uint32(first)))
            assert (stage[places_of] == (LANES + first).astype(int) * CHUNK).all()


def test_lanes_that_read_together_read_different_banks(places: tuple[KeyPlaces, int]):
    """128 bytes at a time: eight lanes of 16 bytes, sixteen of 8, or all of 4. Not of three bits, whose tokens are no
    power of two of bytes apart."""
    found, part = places
    if found.row & (found.row - 1):
        pytest.skip("two lanes share a bank with keys of three bits")
    size = min(part, CHUNK)
    with emulated_ops.launch(1, 1):
        place, more = found.source(1, 1, 0)
    words = (_flat(place)[:, None] + more) // 4 + np.arange(size // 4)
    for lanes in (words % 32).reshape(-1, 32):
        assert sorted(lanes) == list(range(32))

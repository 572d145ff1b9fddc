"""The time of a row's encoder, measured with a clock that the test turns."""

from types import SimpleNamespace

import jax
import pytest

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.eval import encode_time
from kakeya_jax.recipe import Recipe

SHAPE = CacheShape(num_layers=3, num_kv_heads=2, head_dim=32)


def empty_cache(recipe: str, max_length: int) -> CompressedCache:
    return CompressedCache.init(SHAPE, Recipe.parse(recipe), batch_size=1, max_length=max_length)


class Encoder:
    """Stands for the encoder and the clock: each call takes the next of ``seconds``, which start anew for a stream."""

    def __init__(self, *seconds: float) -> None:
        self.now = 1000.0
        self.seconds = seconds
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def perf_counter(self) -> float:
        return self.now

    def encode(self, codec, blocks: jax.Array) -> jax.Array:
        self.now += self.seconds[len(self.calls) % len(self.seconds)]
        self.calls.append((codec.config.name, blocks.shape))
        return blocks


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    fake = Encoder(100.0, 0.75, 0.5)  # compilation, then two runs
    monkeypatch.setattr(encode_time, "_encode", fake.encode)
    monkeypatch.setattr(encode_time, "time", SimpleNamespace(perf_counter=fake.perf_counter))
    return fake


def test_the_fastest_run_of_every_stream_counts_and_compilation_does_not(encoder: Encoder) -> None:
    cache = empty_cache("key=int8(block_size=16),value=int4(block_size=32),sinks=2,recent=8", 140)
    assert encode_time.encode_seconds(cache) == 3 * 2 * 0.5
    pages = (140 - 2 - 8) // 32  # of 32 tokens: two blocks of keys or one of values; the rest is never coded
    assert encoder.calls == [
        *[("int8", (1, 2, 2 * pages, 16, 32))] * 3,
        *[("int4", (1, 2, pages, 32, 32))] * 3,
    ] * len(cache.layers)


def test_more_runs_are_asked_for_by_number(encoder: Encoder) -> None:
    encoder.seconds = (100.0, 0.75, 0.5, 0.25)
    assert encode_time.encode_seconds(empty_cache("int8(block_size=16),sinks=2,recent=8", 140), repeats=3) == 1.5


def test_a_cache_that_codes_nothing_takes_no_time(encoder: Encoder) -> None:
    assert encode_time.encode_seconds(empty_cache("int8", 100)) == 0.0
    assert encoder.calls == []

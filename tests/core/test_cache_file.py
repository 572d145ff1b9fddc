import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from kakeya_jax import cache_file
from kakeya_jax.accounting import cache_report
from kakeya_jax.cache import CacheShape, CompressedCache, cache_nbytes, dense_recipe, recode
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

SHAPE = CacheShape(num_layers=2, num_kv_heads=2, head_dim=16)
ROPE = Rope(head_dim=16)
RECIPE = Recipe.parse(
    "key=kakeya(bits=2,block_size=16,kmeans_centers=4),value=turboquant(bits=3,block_size=8),sinks=2,recent=4,boundary=0"
)


@pytest.fixture(scope="module")
def cache() -> CompressedCache:
    cache = CompressedCache.init(SHAPE, RECIPE, batch_size=2, max_length=64)
    new = jax.random.normal(jax.random.key(0), (2, 50, 2, 16))
    append = jax.jit(type(cache.layers[0]).append, static_argnames="rope")
    return cache.replace_layers(tuple(append(layer, new, -new, rope=ROPE).layer for layer in cache.layers))


def test_file_is_exact(cache: CompressedCache, tmp_path):
    cache.save(tmp_path / "cache")
    loaded = CompressedCache.load(tmp_path / "cache")
    assert jax.tree.structure(loaded) == jax.tree.structure(cache)
    for left, right in zip(jax.tree.leaves(loaded), jax.tree.leaves(cache), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_rotation_by_signs_is_one_matrix_like_any_other(tmp_path):
    """In a file, and in bytes: what programs need of it besides is not kept."""
    recipes = [Recipe.parse(f"both=turboquant(bits=4,rotation={kind},block_size=8)") for kind in ("haar", "hadamard")]
    haar, hadamard = (CompressedCache.init(SHAPE, recipe, batch_size=2, max_length=64) for recipe in recipes)
    hadamard.save(tmp_path / "cache")
    loaded = CompressedCache.load(tmp_path / "cache")
    assert jax.tree.structure(loaded) == jax.tree.structure(hadamard)
    jax.tree.map(np.testing.assert_array_equal, loaded, hadamard)
    assert cache_nbytes(hadamard) == cache_nbytes(haar)
    reports = [cache_report(SHAPE, recipe, max_length=64).streams for recipe in recipes]
    for one, other in zip(*reports, strict=True):
        assert dataclasses.replace(one, codec="") == dataclasses.replace(other, codec="")


def test_truncated_altered_and_foreign_files_say_what_they_are(cache: CompressedCache, tmp_path):
    path = tmp_path / "cache"
    cache.save(path)
    whole = path.read_bytes()
    for length in (0, 4, 8, 9, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"is truncated: {length} bytes do not hold its header"):
            CompressedCache.load(path)
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"is truncated: {length} of {len(whole)} bytes"):
            CompressedCache.load(path)
    for foreign in (b"\x89PNG\r\n\x1a\n" + bytes(2000), b"just a text", bytes(100)):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="is not a kakeya cache file"):
            CompressedCache.load(path)
    path.write_bytes(whole[:8] + b"{{" + whole[10:])
    with pytest.raises(ValueError, match="was altered after it was written"):
        CompressedCache.load(path)
    safetensors.numpy.save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match="a safetensors file of another kind, not a kakeya-cache file"):
        CompressedCache.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CompressedCache.load(tmp_path / "nothing")


def test_a_flipped_byte_anywhere_in_the_data_is_noticed(cache: CompressedCache, tmp_path):
    path = tmp_path / "cache"
    cache.save(path)
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for position in np.linspace(data, len(whole) - 1, 9).astype(int):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="was altered after it was written: its checksum does not match"):
            CompressedCache.load(path)
    recipe = whole.replace(rb"\"bits\": 3", rb"\"bits\": 4")
    assert recipe != whole
    path.write_bytes(recipe)
    with pytest.raises(ValueError, match="its checksum does not match"):
        CompressedCache.load(path)


def rewrite(path, change) -> None:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, arrays)
    metadata["checksum"] = cache_file._checksum(metadata["header"], arrays)
    safetensors.numpy.save_file(arrays, path, metadata=metadata)


def test_newer_or_altered_files_are_refused(cache: CompressedCache, tmp_path):
    path = tmp_path / "cache"
    cache.save(path)
    rewrite(path, lambda metadata, arrays: metadata.update(version="9"))
    with pytest.raises(ValueError, match="cache format 9; this kakeya-jax reads 8: save it anew"):
        CompressedCache.load(path)
    cache.save(path)
    rewrite(path, lambda metadata, arrays: metadata.update(version="2"))  # which had no checksum
    with pytest.raises(ValueError, match="cache format 2; this kakeya-jax reads 8: save it anew"):
        CompressedCache.load(path)
    cache.save(path)
    rewrite(path, lambda metadata, arrays: arrays.pop("layers.1.value.tail"))
    with pytest.raises(ValueError, match=r"first difference: layers\.1\.value\.tail"):
        CompressedCache.load(path)

    def longer(metadata, arrays) -> None:
        header = json.loads(metadata["header"])
        metadata["header"] = json.dumps({**header, "max_length": 128})

    cache.save(path)
    rewrite(path, longer)
    with pytest.raises(ValueError, match="its header says"):
        CompressedCache.load(path)


def test_report_from_shapes_equals_the_arrays_held(cache: CompressedCache):
    report = cache_report(SHAPE, RECIPE, max_length=64, batch_size=2)
    seeded = sum(stream.seeded for stream in report.streams)
    lengths = sum(layer.key.length.nbytes + layer.value.length.nbytes for layer in cache.layers)
    assert report.nbytes + seeded + lengths == cache_nbytes(cache)
    assert report.coded_values == 2 * 2 * 2 * 2 * 48 * 16
    by_hand = {
        "key": 16 * 16 * 2 / 8,  # payload of one block: 16 tokens of 16 coefficients at 2 bits
        "value": 8 * 16 * 3 / 8,
    }
    blocks = {"key": 3, "value": 6}
    for stream in report.streams:
        assert stream.payload == by_hand[stream.stream] * blocks[stream.stream] * 2 * 2
        assert stream.tail == 2 * 2 * (4 + 15) * 16 * 2
        assert (stream.exact_min, stream.exact_max) == (4, 19)
        assert stream.fitted == 0


def test_report_of_the_dense_cache_is_sixteen_bits():
    report = cache_report(SHAPE, Recipe.named("identity"), max_length=1156)
    assert report.payload_bits_per_value == report.all_in_bits_per_value == 16
    assert report.dense_nbytes == 1156 * 2 * 2 * 2 * 16 * 2
    # The tail rounds up to what a page may leave in it, never beyond.
    assert 0.9 < report.compression_ratio <= 1.0


def test_a_128k_cache_is_reported_without_allocating_it():
    shape = CacheShape(num_layers=32, num_kv_heads=8, head_dim=128)
    report = cache_report(shape, Recipe.named("turboquant-4"), max_length=131072)
    assert report.all_in_bits_per_value == pytest.approx(4 + 16 / 128)
    assert report.dense_nbytes == 131072 * 32 * 8 * 128 * 2 * 2
    assert 3.8 < report.compression_ratio < 3.879


def test_recode_equals_appending(cache: CompressedCache):
    dense = CompressedCache.init(SHAPE, dense_recipe(50), batch_size=2, max_length=50)
    new = jax.random.normal(jax.random.key(0), (2, 50, 2, 16))
    dense = dense.replace_layers(tuple(layer.append(new, -new, rope=ROPE).layer for layer in dense.layers))
    empty = CompressedCache.init(SHAPE, RECIPE, batch_size=2, max_length=64)
    recoded = recode(dense, empty, rope=ROPE, length=50)
    for left, right in zip(jax.tree.leaves(recoded), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    post = dataclasses.replace(dense.layers[0].key, rope="post")
    wrong = dense.replace_layers((dataclasses.replace(dense.layers[0], key=post), dense.layers[1]))
    with pytest.raises(ValueError, match="before their rotary embedding"):
        recode(wrong, empty, rope=ROPE, length=50)

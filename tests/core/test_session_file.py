"""A saved session continues bit for bit, any page can be read alone, and a file that is not what it was is refused."""

import json
import pathlib
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.models.attention import attend
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope
from kakeya_jax.session_file import (
    SessionSize,
    coded_bits_per_value,
    load_session,
    read_page,
    save_session,
    session_size,
)
from kakeya_jax.stream import read

K, D = 2, 16
SHAPE = CacheShape(num_layers=2, num_kv_heads=K, head_dim=D)
ROPE = Rope(head_dim=D)
SINKS, RECENT, PAGE = 3, 5, 32
LENGTHS, MAX_LENGTH = (150, 90), 256
PAGES = [(length - SINKS - RECENT) // PAGE for length in LENGTHS]
RECIPE = Recipe.parse(f"klt-storage(bits=2,block_size={PAGE}),sinks={SINKS},recent={RECENT}")
CONFIG = KltStorageConfig(bits=2, block_size=PAGE)


def tables_of(config: KltStorageConfig, shift: float = 0.0) -> dict:
    neutral = jax.tree.map(np.asarray, config.neutral_tables(D, num_kv_heads=K))
    return {(layer, "both"): {**neutral, "mean": neutral["mean"] + layer + np.float32(shift)} for layer in range(2)}


TABLES = tables_of(CONFIG)


@jax.jit
def feed(cache: CompressedCache, key: jax.Array, value: jax.Array, valid: jax.Array) -> CompressedCache:
    layers = (layer.append(key + i, value, rope=ROPE, valid=valid).layer for i, layer in enumerate(cache.layers))
    return cache.replace_layers(tuple(layers))


def new_tokens(seed: int, count: int) -> tuple[jax.Array, jax.Array]:
    key, value = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key, (2, count, K, D)), jax.random.normal(value, (2, count, K, D))


def filled(recipe: Recipe = RECIPE, tables: dict = TABLES, dtype=jnp.bfloat16) -> CompressedCache:
    cache = CompressedCache.init(SHAPE, recipe, batch_size=2, max_length=MAX_LENGTH, tables=tables, dtype=dtype)
    valid = jnp.arange(LENGTHS[0]) < jnp.array(LENGTHS)[:, None]
    return feed(cache, *new_tokens(0, LENGTHS[0]), valid)


@pytest.fixture(scope="module")
def cache() -> CompressedCache:
    return filled()


def attend_next(cache: CompressedCache) -> jax.Array:
    key, value = new_tokens(7, 1)
    positions = cache.length[:, None]
    query = jnp.concatenate([key, value], axis=2)
    out, _ = attend(query, key, value, cache.layers[1], positions=positions, valid=None, rope=ROPE, scale=0.25)
    return out


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_session_continues_bit_for_bit(tmp_path, dtype):
    cache = filled(dtype=dtype)
    save_session(cache, tmp_path / "session")
    assert [path.name for path in tmp_path.iterdir()] == ["session"]
    loaded = load_session(tmp_path / "session", tables=TABLES)
    assert jax.tree.structure(loaded) == jax.tree.structure(cache)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, cache)
    for held, kept in zip(loaded.layers, cache.layers, strict=True):
        chex.assert_trees_all_equal(held.both.blocks, kept.both.blocks)  # pyright: ignore[reportAttributeAccessIssue]
        for view in ("key", "value"):
            chex.assert_trees_all_equal(read(getattr(held, view)), read(getattr(kept, view)))
    step = jax.jit(attend_next)
    np.testing.assert_array_equal(step(loaded), step(cache))
    # Once every slot of the ring has been written again, nothing at all differs.
    rest = new_tokens(1, 100)
    both = [feed(each, *rest, jnp.ones((2, 100), bool)) for each in (loaded, cache)]
    chex.assert_trees_all_equal(*both)


def test_another_process_continues_it(cache: CompressedCache, tmp_path):
    save_session(cache, tmp_path / "before")
    (tmp_path / "tables").write_bytes(pickle.dumps(TABLES))
    program = f"""
import pickle, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_session_file import *
folder = pathlib.Path({str(tmp_path)!r})
loaded = load_session(folder / "before", tables=pickle.loads((folder / "tables").read_bytes()))
save_session(feed(loaded, *new_tokens(1, 70), jnp.ones((2, 70), bool)), folder / "after")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    save_session(feed(cache, *new_tokens(1, 70), jnp.ones((2, 70), bool)), tmp_path / "here")
    there, here = (load_session(tmp_path / name, tables=TABLES) for name in ("after", "here"))
    chex.assert_trees_all_equal(there, here)


def test_any_page_is_read_alone(cache: CompressedCache, tmp_path):
    save_session(cache, tmp_path / "session")
    for layer, row, page in ((0, 0, 0), (1, 0, PAGES[0] - 1), (1, 1, 1)):
        part = slice(SINKS + page * PAGE, SINKS + (page + 1) * PAGE)
        views = cache.layers[layer].key, cache.layers[layer].value
        found = read_page(tmp_path / "session", layer, page, row=row, tables=TABLES)
        for got, view in zip(found, views, strict=True):
            np.testing.assert_allclose(got, read(view)[row, :, part], atol=1e-6)
    for where, message in (
        ({"layer": 2, "page": 0}, "layer=2: the session has 2"),
        ({"layer": 0, "page": PAGES[0]}, f"row 0 of layer 0 has {PAGES[0]} coded pages"),
        ({"layer": 0, "page": 0, "row": -1}, "row=-1: the session has 2"),
    ):
        with pytest.raises(IndexError, match=message):
            read_page(tmp_path / "session", tables=TABLES, **where)


def test_one_damaged_page_leaves_the_others_readable(cache: CompressedCache, tmp_path):
    path = tmp_path / "session"
    save_session(cache, path)
    with safetensors.safe_open(path, framework="numpy") as file:
        pages, sizes = file.get_tensor("pages").tobytes(), file.get_tensor("page_nbytes")
    data = bytearray(path.read_bytes())
    data[data.index(pages) + int(sizes[0]) + 10] ^= 1
    path.write_bytes(data)
    read_page(path, 0, 0, tables=TABLES)
    read_page(path, 0, 2, tables=TABLES)
    for refused in (lambda: read_page(path, 0, 1, tables=TABLES), lambda: load_session(path, tables=TABLES)):
        with pytest.raises(ValueError, match="is damaged: its checksum does not match"):
            refused()


def test_size_is_that_of_the_file(cache: CompressedCache, tmp_path):
    size = save_session(cache, tmp_path / "session")
    assert size == session_size(cache)
    assert size.file_nbytes == (tmp_path / "session").stat().st_size
    coded_tokens = sum(PAGES) * PAGE
    assert size.coded_values == 2 * coded_tokens * 2 * K * D
    assert size.exact_nbytes == 2 * (sum(LENGTHS) - coded_tokens) * 2 * K * D * 2
    assert coded_bits_per_value(cache) == size.bits_per_value == 8 * size.coded_nbytes / size.coded_values
    # Two bits of a unit Gaussian; page means of 32 tokens; 72 bytes of states and index for each page of 2048 values;
    # and a header, which a real session does not notice.
    expected = 2.0 + 3.0 / PAGE + 8 * 72 / (PAGE * 2 * K * D) + 8 * 2000 / size.coded_values
    assert size.bits_per_value == pytest.approx(expected, rel=0.1)
    assert np.isnan(SessionSize(file_nbytes=10, exact_nbytes=5, coded_values=0).bits_per_value)


def test_an_empty_or_short_session_is_one_too(tmp_path):
    cache = CompressedCache.init(SHAPE, RECIPE, batch_size=2, max_length=MAX_LENGTH, tables=TABLES)
    for count in (0, 2, 20):
        held = feed(cache, *new_tokens(0, 20), jnp.broadcast_to(jnp.arange(20) < count, (2, 20)))
        assert save_session(held, tmp_path / "short").coded_values == 0
        loaded = load_session(tmp_path / "short", tables=TABLES)
        chex.assert_trees_all_equal(loaded, held)


def test_without_page_means_and_with_fine_channels(tmp_path):
    for config in (
        KltStorageConfig(bits=2, block_size=PAGE, page_mean=False),
        KltStorageConfig(bits=6, block_size=PAGE),
    ):
        tables = tables_of(config)
        options = f"bits={config.bits},block_size={PAGE},page_mean={str(config.page_mean).lower()}"
        recipe = Recipe.parse(f"klt-storage({options}),sinks={SINKS},recent={RECENT}")
        for named in tables.values():  # a few channels of very fine steps
            named["steps"] = np.sort(np.concatenate([[0.006, 0.01, 0.02, 0.04], named["steps"][4:]])).astype(np.float32)
            named["low_bits"] = np.array([4, 3, 2, 1], np.int8)
        held = filled(recipe, tables)
        save_session(held, tmp_path / "session")
        loaded = load_session(tmp_path / "session", tables=tables)
        for one, other in zip(loaded.layers, held.layers, strict=True):
            chex.assert_trees_all_equal(read(one.key), read(other.key))


def test_other_tables_are_refused(cache: CompressedCache, tmp_path):
    save_session(cache, tmp_path / "session")
    for load in (load_session, lambda path, tables: read_page(path, 0, 0, tables=tables)):
        with pytest.raises(ValueError, match="was coded with other tables"):
            load(tmp_path / "session", tables=tables_of(CONFIG, shift=1e-6))
        with pytest.raises(ValueError, match="layer 0: needs the table 'mean'"):
            load(tmp_path / "session", tables={})


def test_tables_of_another_processor_will_do(cache: CompressedCache, tmp_path):
    """Eigenvectors that differ in their last digits are the same; ones that are turned, mirrored or scaled are not."""
    save_session(cache, tmp_path / "session")
    rng = np.random.default_rng(0)

    def changed(channel: slice, change) -> dict:
        tables = {where: dict(named) for where, named in TABLES.items()}
        for name, axis in (("analysis", 1), ("synthesis", 0)):
            table = np.array(tables[1, "both"][name])
            rows = np.moveaxis(table, axis, 0)
            rows[channel] = change(rows[channel], name)
            tables[1, "both"][name] = table
        return tables

    whole = slice(None)
    rounded = changed(whole, lambda rows, _: rows * (1 + 1e-7 * rng.choice([-1, 1], rows.shape)).astype(np.float32))
    loaded = load_session(tmp_path / "session", tables=rounded)
    for name in ("key", "value"):
        found, kept = (read(getattr(each.layers[1], name)) for each in (loaded, cache))
        np.testing.assert_allclose(found, kept, atol=1e-5)
    last = len(TABLES[1, "both"]["steps"]) - 1
    for change in (
        lambda rows, _: -rows,
        lambda rows, name: rows * np.float32(1.001 if name == "synthesis" else 1 / 1.001),
        lambda rows, _: np.roll(rows, 1),
    ):
        with pytest.raises(ValueError, match="other coordinates of the same means"):
            load_session(tmp_path / "session", tables=changed(slice(last, last + 1), change))
    coarse = {where: {**named, "steps": named["steps"] * np.float32(1.001)} for where, named in TABLES.items()}
    with pytest.raises(ValueError, match="other coordinates of the same means"):
        load_session(tmp_path / "session", tables=coarse)


def test_other_caches_are_refused(tmp_path):
    cache = CompressedCache.init(SHAPE, Recipe.parse("int8"), batch_size=1, max_length=300)
    with pytest.raises(ValueError, match="layer 0 is not coded with klt-storage"):
        save_session(cache, tmp_path / "session")
    assert not list(tmp_path.iterdir())


def test_truncated_and_foreign_files_say_what_they_are(cache: CompressedCache, tmp_path):
    path = tmp_path / "session"
    save_session(cache, path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated, or of another kind"):
            load_session(path, tables=TABLES)
    safetensors.numpy.save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match="of another kind, not a kakeya-session file"):
        load_session(path, tables=TABLES)
    cache.save(path)
    with pytest.raises(ValueError, match="a 'kakeya-cache' file, not a kakeya-session file"):
        load_session(path, tables=TABLES)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_session(tmp_path / "nothing", tables=TABLES)


def rewrite(path: pathlib.Path, change) -> None:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, arrays)
    safetensors.numpy.save_file(arrays, path, metadata=metadata)


def test_newer_or_altered_files_are_refused(cache: CompressedCache, tmp_path):
    path = tmp_path / "session"

    def longer(metadata, arrays) -> None:
        metadata["header"] = json.dumps({**json.loads(metadata["header"]), "max_length": 512})

    def other_exact(metadata, arrays) -> None:
        arrays["layers.1.exact"] = arrays["layers.1.exact"][::-1].copy()

    for change, message in (
        (lambda metadata, arrays: metadata.update(version="4"), "session format '4'; this version reads 3: upgrade"),
        (
            lambda metadata, arrays: metadata.update(version="1"),
            "session format '1'; this version reads 3: save it anew",
        ),
        (lambda metadata, arrays: arrays.pop("page_checksums"), "page_checksums does not match its checksum"),
        (lambda metadata, arrays: arrays.pop("layers.0.exact"), r"layers\.0\.exact does not match"),
        (longer, "its header does not match its checksum"),
        (other_exact, "the exact tokens of layer 1 does not match its checksum"),
    ):
        save_session(cache, path)
        rewrite(path, change)
        with pytest.raises(ValueError, match=message):
            load_session(path, tables=TABLES)


def test_no_changed_bit_passes_unnoticed(cache: CompressedCache, tmp_path):
    """Any bit of the file: loading fails in one line, or what is loaded is the same (blanks between JSON fields)."""
    path = tmp_path / "session"
    save_session(cache, path)
    whole = path.read_bytes()
    loaded = load_session(path, tables=TABLES)
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = np.concatenate([np.arange(8), rng.integers(8, header, 60), rng.integers(header, len(whole), 60)])
    refused = 0
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            changed = load_session(path, tables=TABLES)
        except ValueError:
            refused += 1
            continue
        chex.assert_trees_all_equal(changed, loaded)
    assert refused > 0.9 * len(places)

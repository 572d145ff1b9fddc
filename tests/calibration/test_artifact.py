"""The file: exact, complete or refused, and bound to its model and text."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kakeya_jax.cache import CacheShape
from kakeya_jax.calibration.artifact import Calibration, fingerprint, load_calibration, text_hash, text_windows


@pytest.fixture(scope="module")
def full(calibration: Calibration) -> Calibration:
    """With a table of one codec as well."""
    tables = {"centroids": np.linspace(-1, 1, 4, dtype=np.float32)}
    return dataclasses.replace(calibration, fitted={(1, "key", "kakeya(bits=2)"): tables})


@pytest.fixture
def path(full: Calibration, tmp_path: Path) -> Path:
    full.save(tmp_path / "c")
    return tmp_path / "c"


def test_round_trip(full: Calibration, path: Path):
    loaded = load_calibration(path)
    empty: dict[str, Any] = {"statistics": {}, "fitted": {}}
    assert dataclasses.replace(loaded, **empty) == dataclasses.replace(full, **empty)
    assert loaded.statistics.keys() == full.statistics.keys()
    jax.tree.map(np.testing.assert_array_equal, loaded.statistics, full.statistics)
    jax.tree.map(np.testing.assert_array_equal, loaded.fitted, full.fitted)
    assert json.loads(json.dumps(loaded.about)) == loaded.about


def test_symmetric_matrices_are_stored_once(full: Calibration, path: Path):
    held = sum(array.nbytes for named in full.statistics.values() for array in named.values())
    assert path.stat().st_size < 0.6 * held + 12_000  # the header of so small a file is a third of it


def test_truncated_and_foreign_files_are_refused(path: Path):
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable calibration file"):
            load_calibration(path)
    safetensors.numpy.save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match="not a kakeya-calibration file"):
        load_calibration(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_calibration(path.with_name("nothing"))


def test_a_changed_byte_is_noticed_wherever_it_is(path: Path):
    whole = bytearray(path.read_bytes())
    start_of_data = 8 + int.from_bytes(whole[:8], "little")
    places = np.random.default_rng(0).integers(0, start_of_data, 300).tolist()
    places += np.random.default_rng(1).integers(start_of_data, len(whole), 100).tolist()
    places += [0, 7, 8, start_of_data - 1, start_of_data, len(whole) - 1]
    for place in places:
        for flipped in (1, 32, 128):
            whole[place] ^= flipped
            path.write_bytes(whole)
            with pytest.raises(ValueError, match=str(path)):
                load_calibration(path)
            whole[place] ^= flipped
    path.write_bytes(whole)
    load_calibration(path)


def test_a_renamed_reshaped_or_retyped_array_is_noticed(path: Path):
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = "statistics/0/key/mean"
    changes = [
        {name: arrays[name].T.copy().reshape(arrays[name].shape)},
        {name: arrays[name].reshape(-1, 2)},
        {name: arrays[name].view(np.int32)},
        {"statistics/0/key/mode": arrays[name]},
    ]
    for change in changes:
        safetensors.numpy.save_file({**arrays, **change}, path, metadata=metadata)
        with pytest.raises(ValueError, match="was altered"):
            load_calibration(path)


def test_another_format_is_refused(full: Calibration, path: Path, monkeypatch):
    monkeypatch.setattr("kakeya_jax.calibration.artifact.VERSION", 9)
    with pytest.raises(ValueError, match="has format 3, this version of kakeya-jax reads 9; calibrate again"):
        load_calibration(path)


def test_writing_leaves_the_old_file_or_the_new_one(full: Calibration, path: Path, monkeypatch):
    before = path.read_bytes()

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        full.save(path)
    assert path.read_bytes() == before


def test_another_model_is_refused(config, params, calibration: Calibration):
    calibration.check_model(config, params)
    other = CacheShape(num_layers=3, num_kv_heads=2, head_dim=64)
    with pytest.raises(ValueError, match=r"num_layers=2 \(this one: 3\), head_dim=16 \(this one: 64\)"):
        calibration.check_model(other, params)
    with pytest.raises(ValueError, match="fitted for other weights"):
        calibration.check_model(config, jax.tree.map(lambda x: x * 1.01, params))
    assert fingerprint(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)) == fingerprint(params)


def test_one_weight_of_another_value_is_another_model(config, params, calibration: Calibration):
    flat, tree = jax.tree.flatten(params)
    place = int(np.argmax([leaf.size for leaf in flat]))
    for index in (0, 1, flat[place].size // 2 + 1, flat[place].size - 1):
        changed = flat[place].reshape(-1).at[index].add(100.0).reshape(flat[place].shape)
        other = jax.tree.unflatten(tree, [*flat[:place], changed, *flat[place + 1 :]])
        with pytest.raises(ValueError, match="fitted for other weights"):
            calibration.check_model(config, other)
    values = np.arange(6, dtype=np.float32)
    prints = {fingerprint({name: values.reshape(shape)}) for name in "ab" for shape in ((6,), (2, 3), (3, 2))}
    assert len(prints) == 6, "names and shapes count"


def test_the_model_is_checked_as_the_file_is_read(config, params, path: Path):
    assert load_calibration(path, config, params).model == fingerprint(params)
    with pytest.raises(ValueError, match="fitted for other weights"):
        load_calibration(path, config, jax.tree.map(lambda x: x * 1.01, params))
    with pytest.raises(ValueError, match="give both the model's config and its params"):
        load_calibration(path, config)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_has_the_mode_that_the_user_s_umask_gives(full: Calibration, tmp_path: Path, mask: int, mode: int):
    before = os.umask(mask)
    try:
        full.save(tmp_path / "d")
    finally:
        os.umask(before)
    assert (tmp_path / "d").stat().st_mode & 0o777 == mode


def test_calibration_text_is_refused_at_any_offset(calibration: Calibration, passages: np.ndarray):
    other = np.random.default_rng(9).integers(0, 97, 500, np.int32)
    calibration.check_text(other)
    leaked = np.concatenate([other[:77], passages[1], other[77:]])
    with pytest.raises(ValueError, match="contains 2 windows of 64 tokens"):
        calibration.check_text(leaked)
    assert len(text_windows(passages)) == 8


@pytest.mark.parametrize(
    ("length", "part", "found"),
    [
        (100, slice(30, 100), "1 windows of 64"),  # the end of a passage, which no whole number of windows reaches
        (128, slice(60, 128), "1 windows of 64"),
        (60, slice(0, 60), "1 windows of 60"),
        (60, slice(0, 59), None),
    ],
)
def test_the_ends_of_passages_and_short_passages_are_refused(
    calibration: Calibration, length: int, part: slice, found: str | None
):
    rng = np.random.default_rng(1)
    passages, other = rng.integers(0, 97, (3, length), np.int32), rng.integers(0, 97, 200, np.int32)
    fitted = dataclasses.replace(calibration, corpus=text_windows(passages))
    fitted.check_text(other)
    leaked = np.concatenate([other[:33], passages[2][part], other[33:]])
    if found is None:
        fitted.check_text(leaked)
        return
    with pytest.raises(ValueError, match=f"contains {found} tokens"):
        fitted.check_text(leaked)


def test_short_passages_are_refused_after_saving_and_beside_long_ones(calibration: Calibration, tmp_path: Path):
    short = np.random.default_rng(2).integers(0, 97, (2, 40), np.int32)
    mixed = dataclasses.replace(calibration, corpus=calibration.corpus + text_windows(short))
    mixed.save(tmp_path / "c")
    with pytest.raises(ValueError, match="contains 2 windows of 40 tokens"):
        load_calibration(tmp_path / "c").check_text(short.reshape(-1))


def test_text_hash_depends_on_ids_and_passages(passages: np.ndarray):
    changed = passages.copy()
    changed[2, 3] += 1
    hashes = {text_hash(each) for each in (passages, changed, passages.reshape(2, -1), passages[:3])}
    assert len(hashes) == 4
    assert text_hash(passages.astype(np.int64)) == text_hash(passages)


def test_notes_speak_of_missing_gradients(calibration: Calibration):
    assert calibration.notes() == ()
    (note,) = dataclasses.replace(calibration, fisher="differences").notes()
    assert "--no-backward" in note

"""The file: exact, complete or refused, and bound to its model and text."""

import dataclasses
import json
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
    with pytest.raises(ValueError, match="has format 2, this version of kakeya-jax reads 9; calibrate again"):
        load_calibration(path)


def test_writing_leaves_the_old_file_or_the_new_one(full: Calibration, path: Path, monkeypatch):
    before = path.read_bytes()

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fails)
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


def test_calibration_text_is_refused_at_any_offset(calibration: Calibration, passages: np.ndarray):
    other = np.random.default_rng(9).integers(0, 97, 500, np.int32)
    calibration.check_text(other)
    leaked = np.concatenate([other[:77], passages[1], other[77:]])
    with pytest.raises(ValueError, match="contains 1 windows of 64 tokens"):
        calibration.check_text(leaked)
    assert len(text_windows(passages)) == 4


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

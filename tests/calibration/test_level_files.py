"""Fitted levels leave a calibration as files, and come back as the tables of a codec."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.level_files import export_levels
from kakeya_jax.eval.cli import run
from kakeya_jax.level_file import load_levels
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.recipe import Recipe

OWN = "kakeya(block_size=16,bits=2,centroids=calibrated)"
POOLED = "kakeya(block_size=16,centroids=pooled)"


@pytest.fixture(scope="module")
def fitted(calibration: Calibration) -> Calibration:
    """Levels of their own for the keys of two layers, pooled ones for their values, and a table of another kind."""
    pooled = {"centroids": gaussian_levels(3) * np.float32(1.25)}
    tables = {
        (0, "key", OWN): {"centroids": gaussian_levels(2) * np.float32(0.5)},
        (1, "key", OWN): {"centroids": gaussian_levels(2) * np.float32(2.0)},
        (0, "value", f"{POOLED} over layers 0,1"): pooled,
        (1, "value", f"{POOLED} over layers 0,1"): pooled,
        (0, "value", "riemannian(magnitude_bits=2)"): {"scales": np.ones(8, np.float32)},
    }
    return dataclasses.replace(calibration, fitted=tables)


def test_every_table_is_written_once_with_where_it_comes_from(fitted: Calibration, tmp_path: Path) -> None:
    written = export_levels(fitted, tmp_path / "new")
    found = [load_levels(path) for path in written]
    assert [(header["stream"], header["layers"]) for _, header in found] == [
        ("key", [0]),
        ("key", [1]),
        ("value", [0, 1]),
    ]
    for (levels, header), factor in zip(found, (0.5, 2.0, 1.25), strict=True):
        bits = 3 if header["stream"] == "value" else 2
        np.testing.assert_array_equal(levels, gaussian_levels(bits) * np.float32(factor))
        assert header["model_fingerprint"] == fitted.model
        assert header["text"] == "random"
    assert len(list((tmp_path / "new").iterdir())) == 6, "each with its header"
    assert export_levels(fitted, tmp_path / "new") == written


def test_codecs_that_differ_late_in_their_text_have_files_of_their_own(fitted: Calibration, tmp_path: Path) -> None:
    long = "kakeya(" + "x" * 150
    tables = {(0, "key", f"{long}{end})"): {"centroids": gaussian_levels(end)} for end in (1, 2)}
    written = export_levels(dataclasses.replace(fitted, fitted=tables), tmp_path)
    assert sorted(len(load_levels(path)[0]) for path in written) == [2, 4]


def test_levels_of_a_file_are_a_codec_s_table(fitted: Calibration, tmp_path: Path) -> None:
    first, _, pooled = export_levels(fitted, tmp_path)
    recipe = Recipe.parse(f"key={OWN},value={POOLED},sinks=2,recent=8")
    tables = {
        (layer, name): {"centroids": jnp.asarray(load_levels(path)[0])}
        for layer in range(fitted.shape.num_layers)
        for name, path in (("key", first), ("value", pooled))
    }
    cache = CompressedCache.init(fitted.shape, recipe, batch_size=1, max_length=64, tables=tables)
    np.testing.assert_array_equal(cache.layers[1].key.codec.centroids, gaussian_levels(2) * np.float32(0.5))
    np.testing.assert_array_equal(cache.layers[1].value.codec.centroids, gaussian_levels(3) * np.float32(1.25))


def test_levels_command(fitted: Calibration, calibration: Calibration, tmp_path: Path, capsys) -> None:
    fitted.save(tmp_path / "c")
    assert run(["calibrate", "--check", str(tmp_path / "c"), "--levels", str(tmp_path / "levels")]) == 0
    assert "levels: 3 tables of levels, key-layer-0-kakeya" in capsys.readouterr().err
    assert len(list((tmp_path / "levels").glob("*.f32"))) == 3
    calibration.save(tmp_path / "d")
    for arguments, message in (
        (["--check", str(tmp_path / "d"), "--levels", str(tmp_path / "none")], "has no fitted levels"),
        (["--check", str(tmp_path / "c"), "--levels", str(tmp_path / "d")], "is no folder"),
        (["--out", str(tmp_path / "e"), "--levels", str(tmp_path / "none")], "name it with --check FILE"),
    ):
        assert run(["calibrate", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()

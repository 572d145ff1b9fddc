import json
from pathlib import Path

import numpy as np
import pytest

from kakeya_jax.level_file import load_levels, save_levels
from kakeya_jax.lloyd_max import fit_levels, gaussian_levels, pool_samples, read_levels, write_levels

HEADER = {"model": "m", "stream": "key", "layers": [1, 2], "tokens": 8192}


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_levels_and_header_come_back(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "levels.f32"
    save_levels(path, gaussian_levels(bits), HEADER)
    levels, header = load_levels(path)
    np.testing.assert_array_equal(levels, gaussian_levels(bits))
    assert header == HEADER
    assert json.loads((tmp_path / "levels.f32.json").read_text())["bits"] == bits


def test_values_are_those_of_the_raw_format(tmp_path: Path) -> None:
    save_levels(tmp_path / "ours", gaussian_levels(3))
    np.testing.assert_array_equal(read_levels(tmp_path / "ours", 3), gaussian_levels(3))
    assert (tmp_path / "ours").read_bytes() == gaussian_levels(3).astype("<f4").tobytes()
    write_levels(tmp_path / "theirs", gaussian_levels(2))
    levels, header = load_levels(tmp_path / "theirs")
    np.testing.assert_array_equal(levels, gaussian_levels(2))
    assert header == {}


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(12))
    with pytest.raises(ValueError, match="12 bytes are not 2, 4, 8"):
        load_levels(path)
    save_levels(path, gaussian_levels(2), HEADER)
    write_levels(path, gaussian_levels(2) * 2)
    with pytest.raises(ValueError, match="belongs to other levels"):
        load_levels(path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_levels(path)
    (tmp_path / "x.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="not a kakeya-levels header"):
        load_levels(path)
    with pytest.raises(ValueError, match="'bits' is the format's own"):
        save_levels(path, gaussian_levels(2), {"bits": 2})
    with pytest.raises(ValueError, match="ascending"):
        save_levels(path, gaussian_levels(2)[::-1])


def test_pooled_samples_are_all_of_them_or_a_fair_share() -> None:
    rng = np.random.default_rng(0)
    narrow, wide = rng.standard_normal((30_000, 2)), 10 + rng.standard_normal(20_000)
    everything = pool_samples([narrow, wide])
    np.testing.assert_array_equal(everything, np.concatenate([narrow.ravel(), wide]))
    some = pool_samples([narrow, np.zeros(0), wide], limit=8_000)
    assert some.size == 8_000
    assert np.mean(some > 5) == pytest.approx(0.25, abs=1e-4)
    np.testing.assert_array_equal(some, pool_samples([narrow, np.zeros(0), wide], limit=8_000))
    assert not np.array_equal(some, pool_samples([narrow, np.zeros(0), wide], limit=8_000, seed=1))
    # A stride would see one column only.
    columns = np.tile([1.0, -1.0], 50_000)
    assert abs(np.mean(pool_samples([columns], limit=10_000))) < 0.05


def test_pooled_levels_serve_all_layers_best() -> None:
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal(50_000), rng.laplace(scale=np.sqrt(0.5), size=50_000)]
    together = pool_samples(layers)

    def error(levels: np.ndarray) -> float:
        return float(np.mean(np.min((together[:, None] - levels) ** 2, axis=1)))

    pooled = error(fit_levels(together, 2))
    assert all(pooled < error(fit_levels(samples, 2)) for samples in layers)

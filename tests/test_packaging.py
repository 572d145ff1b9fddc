"""The wheel holds the package, all of it and nothing else, and works away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (
    "kakeya_jax",
    "pallas_kernels",
    "models",
    "calibration",
    "eval",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def package_files(root: Path) -> set[str]:
    """The files of the package as it is imported from ``root``, symlinked folders included."""
    return {
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root / "kakeya_jax", followlinks=True)
        for name in names
        if "__pycache__" not in folder and not name.startswith(".")
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged: a build must neither leave traces in the checkout nor use old ones."""
    root = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    run(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; what it depends on comes from the environment of the tests."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target)
    run(*pip, wheel, cwd=target)
    return target


def test_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name, count in Counter(names).items() if count > 1] == []
    in_wheel = {name for name in names if ".dist-info/" not in name}
    assert in_wheel == package_files(source)  # a data file that is missing belongs in package-data
    for name in ("py.typed", "codecs/registry.py", "models/__init__.py", "eval/cli.py"):
        assert f"kakeya_jax/{name}" in in_wheel


def test_wheel_holds_the_demo_model(wheel: Path):
    demo = {path.name for path in (ROOT / "models" / "demo").iterdir() if not path.name.startswith(".")}
    names = zipfile.ZipFile(wheel).namelist()
    assert demo
    assert demo == {Path(name).name for name in names if name.startswith("kakeya_jax/models/demo/")}


def test_wheel_holds_the_license(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path):
    build = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    run(*pip, "--wheel-dir", tmp_path, sdist, cwd=tmp_path)
    (rebuilt,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(rebuilt).namelist()
    assert sorted(names) == sorted(zipfile.ZipFile(wheel).namelist())


def test_installed_copy_imports_elsewhere(installed: Path, tmp_path: Path):
    code = """
from importlib.metadata import version
import kakeya_jax, kakeya_jax.models, kakeya_jax.eval, kakeya_jax.calibration, kakeya_jax.pallas_kernels
assert kakeya_jax.__version__ == version("kakeya-jax")
assert "int8" in kakeya_jax.codec_names()
print(kakeya_jax.__file__, kakeya_jax.models.__file__, sep="\\n")
"""
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert all(Path(path).is_relative_to(installed) for path in printed)
    assert not any((installed / name).exists() for name in ("models", "eval", "calibration", "pallas_kernels"))


def test_installed_console_script_runs_elsewhere(installed: Path, tmp_path: Path):
    printed = run(installed / "bin" / "kakeya", "codecs", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "int8" in printed

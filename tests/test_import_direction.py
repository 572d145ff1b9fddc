"""The layers import downwards only, and the core stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = ("core", "pallas_kernels", "models", "calibration", "eval")
"""Each layer may import itself and those before it."""

FORBIDDEN = {
    "core": (
        "flax",
        "huggingface_hub",
        "jax.experimental.pallas",
        "matplotlib",
        "optax",
        "orbax",
        "rich",
        "tokenizers",
        "transformers",
        "typer",
    ),
    "pallas_kernels": (
        "flax",
        "huggingface_hub",
        "matplotlib",
        "optax",
        "orbax",
        "rich",
        "transformers",
        "typer",
    ),
    "models": ("matplotlib", "typer"),
    "calibration": ("matplotlib", "typer"),
    "eval": (),
}
"""Packages that a layer must not import, besides those that no layer may."""

FORBIDDEN_EVERYWHERE = ("tests", "torch")

TORCH_BASELINES = "kakeya_jax.eval.torch_attention"
"""What measures torch beside us, where it is installed: the one module that may import it, inside its functions."""


def imported_modules(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Every module, or name of one, that ``source`` imports at any depth; relative imports are resolved."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                base = [*package[: len(package) - level + 1], *([origin] if origin else [])] if level else [origin]
                yield from (".".join([*map(str, base), name.name]) for name in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "core"


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What ``module`` imports against the rules."""
    layer = layer_of(module)
    banned = (*FORBIDDEN[layer], *FORBIDDEN_EVERYWHERE, *LAYERS[1:])  # bare `models` is a mistake everywhere
    found = []
    for name in imported_modules(source, module, is_package=is_package):
        if module == TORCH_BASELINES and name.split(".")[0] == "torch":
            continue
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in banned):
            found.append(f"{module} imports {name}")
        elif name.startswith("kakeya_jax.") and LAYERS.index(layer_of(name)) > LAYERS.index(layer):
            found.append(f"{module} imports {name}, which is above it")
    return found


def library_files() -> list[Path]:
    package = ROOT / "kakeya_jax"
    folders = [package, *(package / layer for layer in LAYERS[1:])]
    found = {path for folder in folders for path in folder.rglob("*.py")}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def run_python(code: str, *, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_layer_is_looked_at():
    layers = {layer_of(module_name(path)) for path in library_files()}
    assert layers == set(LAYERS)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_downwards(path: Path):
    found = violations(path.read_text(), module_name(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kakeya_jax.cache", "import flax.linen as nn"),
        ("kakeya_jax.cache", "from jax.experimental import pallas as pl"),
        ("kakeya_jax.cache", "from kakeya_jax import models"),
        ("kakeya_jax.cache", "from .models import config"),
        ("kakeya_jax.codecs.kakeya", "from ..eval import gates"),
        ("kakeya_jax.codecs.kakeya", "def f():\n    import kakeya_jax.pallas_kernels"),
        ("kakeya_jax.pallas_kernels.api", "from kakeya_jax.models.config import Config"),
        ("kakeya_jax.models.decoder", "from kakeya_jax.calibration import fit"),
        ("kakeya_jax.models.decoder", "import importlib\nimportlib.import_module('kakeya_jax.eval')"),
        ("kakeya_jax.calibration.fit", "import kakeya_jax.eval.gates"),
        ("kakeya_jax.eval.gates", "import torch"),
        ("kakeya_jax.eval.gates", "from torch import nn"),
        ("kakeya_jax.eval.gates", "from models import decoder"),
    ],
)
def test_wrong_import_is_found(module: str, source: str):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "kakeya_jax.cache",
            "from kakeya_jax.codecs import registry\nimport jax.experimental.compilation_cache",
        ),
        ("kakeya_jax.codecs.kakeya", "from ..pca import fit"),
        ("kakeya_jax.pallas_kernels.api", "from jax.experimental import pallas"),
        (
            "kakeya_jax.models.decoder",
            "import flax.linen as nn\nfrom kakeya_jax.pallas_kernels import attention",
        ),
        ("kakeya_jax.eval.cli", "import typer\nfrom kakeya_jax.models import decoder\nfrom . import gates"),
    ],
)
def test_right_import_is_let_through(module: str, source: str):
    assert violations(source, module) == []


def test_core_imports_alone():
    heavy = {*FORBIDDEN["core"], "torch"}
    loaded = run_python("import sys, kakeya_jax; print(*sys.modules)").split()
    assert heavy.isdisjoint(loaded)


def test_library_imports_without_its_extras():
    run_python(
        """
import importlib, pkgutil, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("IPython", "hypothesis", "lm_eval", "matplotlib", "nbformat", "torch"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import kakeya_jax
for module in pkgutil.walk_packages(kakeya_jax.__path__, "kakeya_jax."):
    if not module.name.endswith(("__main__", "eval.lm_harness")):  # a class of the harness's
        importlib.import_module(module.name)
"""
    )


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_bare_import_says_what_to_write(layer: str):
    message = run_python(f"try:\n    import {layer}\nexcept ImportError as error:\n    print(error)")
    assert f"write `import kakeya_jax.{layer}`" in message

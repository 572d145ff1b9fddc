"""Is this installation sound? Versions, devices, and a numeric self-test of a few seconds."""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
from rich.table import Table
from rich.text import Text

from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.registry import codec_class, codec_names
from kakeya_jax.eval.environment import compile_cache_folder, environment
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.rope import Rope
from kakeya_jax.testing import synthetic_kv

PASS, FAIL, NOTE = "PASS", "FAIL", "NOTE"

WORST_CODEC_ERROR = 0.5
"""Relative mean squared error of normal-looking values that no codec at its defaults comes near."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's list; ``NOTE`` informs and never fails."""

    name: str
    status: str
    detail: str


def diagnose() -> list[Check]:
    """Runs every check; one that raises is a ``FAIL`` with its message."""
    return [
        *_environment_checks(),
        _check("compile cache", _compile_cache),
        _check("bundled model", _bundled_model),
        *(_check(f"codec {name}", lambda name=name: _codec(name)) for name in codec_names()),
        _check("cache and attention", _cache),
        _check("plots", _plots),
    ]


def is_healthy(checks: list[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.status != FAIL for check in checks)


def checks_table(checks: list[Check]) -> Table:
    """The list for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check")
    table.add_column("")
    table.add_column("detail")
    styles = {PASS: "green", FAIL: "bold red", NOTE: "yellow"}
    for check in checks:
        table.add_row(check.name, Text(check.status, style=styles[check.status]), check.detail)
    return table


def report_dict(checks: list[Check]) -> dict[str, Any]:
    """The list as plain data for JSON, with the environment."""
    return {
        "healthy": is_healthy(checks),
        "checks": [dataclasses.asdict(check) for check in checks],
        "environment": environment(),
    }


def _check(name: str, run: Callable[[], tuple[str, str]]) -> Check:
    start = time.perf_counter()
    try:
        status, detail = run()
    except Exception as error:  # whatever is broken here is what the doctor is for
        status, detail = FAIL, f"{type(error).__name__}: {' '.join(str(error).split())}"
    elapsed = time.perf_counter() - start
    return Check(name=name, status=status, detail=detail + (f" ({elapsed:.1f} s)" if elapsed > 0.5 else ""))


def _environment_checks() -> Iterator[Check]:
    found = environment()
    python = PASS if sys.version_info >= (3, 11) else FAIL
    yield Check(name="python", status=python, detail=f"{found['python']} on {found['platform']}")
    missing = [name for name, version in found["packages"].items() if version is None and name != "kakeya-jax"]
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    detail = f"missing: {', '.join(missing)}; pip install kakeya-jax" if missing else versions
    yield Check(name="packages", status=FAIL if missing else PASS, detail=detail)
    devices = f"{found['backend']}: {', '.join(found['devices'])} ({found['cpu_count']} CPU cores)"
    yield Check(name="devices", status=PASS, detail=devices)


def _compile_cache() -> tuple[str, str]:
    folder = compile_cache_folder()
    if not folder:
        return NOTE, "off: every run compiles again"
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        return PASS, str(folder)


def _bundled_model() -> tuple[str, str]:
    from kakeya_jax.models.locate import DEMO, find_folder

    config = ModelConfig.from_folder(find_folder(DEMO))
    return PASS, f"{config.num_layers} layers, head_dim {config.head_dim}, vocabulary {config.vocab_size}"


def _codec(name: str) -> tuple[str, str]:
    config = codec_class(name)()
    block = synthetic_kv(0, config.block_size, 128, "value")
    codec = config.build(128, tables=config.neutral_tables(128))
    if config.joint_heads:
        block = jnp.stack([block] * (2 if config.joint_streams else 1))  # one head: of a stream, or its keys and values
    decoded = jax.jit(round_trip)(codec, block)
    error = float(jnp.sum((decoded - block) ** 2) / jnp.sum(block**2))
    return PASS if error < WORST_CODEC_ERROR else FAIL, f"relative mean squared error {error:.1e}"


def _cache() -> tuple[str, str]:
    from kakeya_jax.eval.perplexity import evaluate

    model, params = _tiny_decoder()
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, 768).astype(np.int32)
    result = evaluate(model, params, tokens, ["identity", "int4,recent=1"], context=384, passages=2)
    exact, coded = (row.kl_mean for row in result.rows)
    ok = exact < 1e-6 and 10 * exact < coded < 1.0
    return PASS if ok else FAIL, f"KL identity {exact:.0e} (below 1e-6), int4 {coded:.0e} (well above it)"


def _tiny_decoder() -> tuple[Decoder, Any]:
    config = ModelConfig(
        model_type="llama",
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        rope=Rope(head_dim=64),
        max_position_embeddings=512,
    )
    model = Decoder(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: 4.0 * leaf if leaf.ndim == 2 else leaf, params)


def _plots() -> tuple[str, str]:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        return (
            NOTE,
            "matplotlib is missing: kakeya demo and --plot draw nothing; pip install 'kakeya-jax[report]'",
        )
    return PASS, "matplotlib is there"

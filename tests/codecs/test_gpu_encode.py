"""Blocks encoded on a GPU are those encoded on a CPU, but for ties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.fp8 import Fp8Config
from kakeya_jax.codecs.integer import Int4Config, Int8Config
from kakeya_jax.codecs.kivi import KiviConfig
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.turboquant import TurboQuantConfig

CONFIGS: list[CodecConfig] = [
    *(TurboQuantConfig(bits=bits) for bits in (2, 3, 4)),
    *(Fp8Config(), Int8Config(), Int4Config(), KiviConfig()),
    *(KltConfig(bits=bits) for bits in (2, 4)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("stream", ["key", "value"])
def test_codes_of_a_gpu_are_those_of_a_cpu(config: CodecConfig, stream: Any):
    """Of 64 blocks of 128 vectors; a rounding the other way changes at most a code in two thousand and nothing else."""
    tables = config.neutral_tables(128, num_kv_heads=2) if config.needs_tables() else None
    codec = config.build(128, stream=stream, tables=tables)
    heads = (2,) if config.joint_heads else ()
    blocks = np.asarray(jax.random.normal(jax.random.key(0), (64, *heads, config.block_size, 128)))
    encode = jax.jit(jax.vmap(lambda codec, block: codec.encode(block), in_axes=(None, 0)))
    decode = jax.jit(jax.vmap(lambda codec, code: codec.decode(code), in_axes=(None, 0)))
    found = []
    for device in (jax.devices("cpu")[0], jax.devices("gpu")[0]):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            here = jax.device_put(codec, device)
            code = encode(here, jax.device_put(jnp.asarray(blocks), device))
            found.append((jax.tree.map(np.asarray, code), np.asarray(decode(here, code))))
    (cpu, on_cpu), (gpu, on_gpu) = found
    different = [np.mean(a != b) for a, b in zip(jax.tree.leaves(cpu), jax.tree.leaves(gpu), strict=True)]
    assert max(different) < 5e-4
    errors = [np.mean(np.square(each - blocks)) for each in (on_cpu, on_gpu)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)

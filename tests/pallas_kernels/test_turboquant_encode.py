"""Pages encoded by the kernel are those that the codec encodes: interpreted, lowered for a GPU, and on one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mosaic import lowered, triton_kernels
from page_codes import assert_same_codes, assert_same_vectors, codes_on_gpu_and_cpu

from kakeya_jax.codecs.turboquant import TurboQuant, TurboQuantConfig
from kakeya_jax.pallas_kernels.encode.bfloat16_parts import add_products, cut, rounded
from kakeya_jax.pallas_kernels.encode.turboquant_pages import TURBOQUANT_PAGES, encode_turboquant_pages
from kakeya_jax.stream import encode_blocks


def codec_and_pages(
    stream: Any, *, dim: int = 128, pages: int = 2, dtype: Any = jnp.float32, **options: Any
) -> tuple[TurboQuant, jax.Array]:
    """A codec, and two rows of two heads' pages whose norms differ by orders of magnitude."""
    config = TurboQuantConfig(**options)
    x = jax.random.normal(jax.random.key(0), (2, 2, pages, config.block_size, dim))
    x = x * jnp.exp(2.0 * jax.random.normal(jax.random.key(1), (*x.shape[:4], 1)))
    return config.build(dim, layer=1, stream=stream), x.astype(dtype)


def check(codec: TurboQuant, pages: jax.Array) -> None:
    found = encode_turboquant_pages(codec, pages, interpret=True)
    assert_same_vectors(codec, found, jax.jit(encode_blocks)(codec, pages))


@pytest.mark.parametrize(
    ("stream", "bits"),
    [
        ("key", 2),
        ("value", 3),
        ("key", 4),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("value", 2), ("key", 3), ("value", 4))),
    ],
)
def test_interpreted_codes_are_the_codecs(stream: Any, bits: int):
    """Among others of vectors of zeros, of norms below the smallest that counts and up to the largest, and of values
    that are no numbers."""
    codec, pages = codec_and_pages(stream, bits=bits)
    norms = jnp.geomspace(1e-6, 1e4, 128)[:, None]
    pages = pages.at[0, 0, 0].set(norms * pages[0, 0, 0] / jnp.linalg.norm(pages[0, 0, 0], axis=-1, keepdims=True))
    pages = pages.at[0, 1, 0, 3:7].set(0.0).at[0, 1, 0, 9].set(1e-9).at[0, 1, 0, 10].set(1e-30)
    pages = pages.at[1, 0, 0, 3, 5].set(jnp.nan).at[1, 0, 0, 7].set(jnp.nan)
    pages = pages.at[1, 1, 0, 1].set(jnp.inf).at[1, 1, 0, 2, ::2].set(-jnp.inf).at[1, 1, 0, 4].multiply(1e30)
    check(codec, pages)


@pytest.mark.parametrize(
    ("stream", "options"),
    [
        ("key", {"bits": 3, "pages": 1, "dtype": jnp.bfloat16}),
        ("value", {"dim": 64, "bits": 2, "block_size": 64, "dtype": jnp.float16}),
        ("value", {"dim": 64, "bits": 3, "block_size": 192, "pages": 1, "dtype": jnp.bfloat16}),
        ("key", {"bits": 4, "dim": 64, "block_size": 256, "pages": 1, "norm_correction": False}),
        ("value", {"bits": 4, "rotation": "hadamard", "dtype": jnp.bfloat16, "norm_correction": False}),
    ],
    ids=str,
)
def test_other_options(stream: Any, options: dict[str, Any]):
    check(*codec_and_pages(stream, **options))


def test_the_largest_scales():
    """Of vectors clipped in all channels, along one axis of the levels: as near to the end of float16 as can be."""
    codec, pages = codec_and_pages("key", bits=4, pages=1, block_size=64, rotation="hadamard")
    pages = pages.at[0, 0, 0, :32].set(codec.rotation[:32] * 1e30)
    found = encode_turboquant_pages(codec, pages, interpret=True).scale
    assert float(jnp.max(found)) > 5e4
    assert_same_codes(found, jax.jit(encode_blocks)(codec, pages).scale)  # the other coordinates are 0, which are ties


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_products_in_parts_are_those_of_float32(dtype: str):
    x, rotation = (jax.random.normal(jax.random.key(seed), (32, 128)) for seed in (0, 1))
    x = x.astype(dtype).astype(jnp.float32)
    pieces = cut(x, {"bfloat16": 1, "float16": 2}.get(dtype, 3))
    assert (np.sum(np.asarray(pieces, np.float32), axis=0) == x).all()
    found = add_products(jnp.zeros((32, 32)), pieces, list(rounded(rotation)))
    exact = np.asarray(x, np.float64) @ np.asarray(rotation, np.float64).T
    assert np.max(np.abs(found - exact)) < 2e-5


@pytest.mark.parametrize(
    ("options", "tokens", "dim"),
    [
        ({"bits": 1}, 128, 128),
        ({"bits": 5}, 128, 128),
        ({"bits": 4, "qjl": True}, 128, 128),
        ({"mix_heads": True}, 128, 128),
        ({"block_size": 32}, 32, 128),
        ({"block_size": 96}, 96, 128),
        ({}, 128, 32),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_take(options: dict[str, Any], tokens: int, dim: int):
    assert not TURBOQUANT_PAGES.supports(TurboQuantConfig(**options).build(dim), tokens, dim)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("stream", ["key", "value"])
def test_caches_encode_with_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch, stream: Any, bits: int):
    """Where a GPU is the default device: a program for it has the kernel, one for a CPU has none."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    codec, pages = codec_and_pages(stream, bits=bits, dtype=jnp.bfloat16)
    traced = jax.jit(lambda codec, pages: encode_blocks(codec, pages)).trace(codec, pages)
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert triton_kernels(lowered(lambda codec, pages: encode_blocks(codec, pages), codec, pages)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("stream", ["key", "value"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": jnp.bfloat16},
        {"dtype": jnp.float16, "dim": 64, "block_size": 192},
        {"norm_correction": False, "rotation": "hadamard", "block_size": 64},
    ],
    ids=str,
)
def test_codes_of_a_gpu_are_those_of_a_cpu(stream: Any, bits: int, options: dict[str, Any]):
    codec, pages = codec_and_pages(stream, bits=bits, pages=32, **options)
    assert_same_vectors(codec, *codes_on_gpu_and_cpu(codec, pages))

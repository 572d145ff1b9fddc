"""Pages encoded by the kernel are those that the codec encodes: interpreted, lowered for a GPU, and on one."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from klt_streams import DIM, HEADS, random_tables
from mosaic import lowered, triton_kernels
from page_codes import assert_codes_of_a_gpu_are_those_of_a_cpu, assert_same_codes

from kakeya_jax.codecs.klt import Klt, KltConfig
from kakeya_jax.pallas_kernels.encode.klt_pages import KLT_PAGES, encode_klt_pages
from kakeya_jax.stream import encode_blocks

WIDTHS = [[8, 6, 4, 4, 2, 2, 0, 0], [6, 4, 4, 4, 2, 0, 0, 0]]


def codec_and_pages(stream: Any, widths: Any = WIDTHS, *, pages: int = 2, **options: Any) -> tuple[Klt, jax.Array]:
    """A codec of random tables, and two rows of pages of what it expects."""
    config = KltConfig(**options)
    codec = config.build(DIM, stream=stream, tables=random_tables(widths, 3, keys=stream == "key"))
    z = jax.random.normal(jax.random.key(4), (2, HEADS, pages, config.block_size, DIM))
    z = z * jnp.exp(jax.random.normal(jax.random.key(5), (*z.shape[:4], 1)))
    return codec, jnp.einsum("bkpne,ked->bkpnd", z, codec.synthesis) + codec.mean[None, :, None, None]


def interpreted(codec: Klt, pages: jax.Array) -> Any:
    return jax.jit(lambda codec, pages: encode_klt_pages(codec, pages, interpret=True))(codec, pages)


@pytest.mark.parametrize("stream", ["key", "value"])
@pytest.mark.parametrize("block_size", [pytest.param(64, marks=pytest.mark.slow), 128])
def test_interpreted_codes_are_the_codecs(stream: Any, block_size: int):
    codec, pages = codec_and_pages(stream, block_size=block_size)
    assert_same_codes(interpreted(codec, pages), jax.jit(encode_blocks)(codec, pages))


def test_other_options():
    codec, pages = codec_and_pages("value", [[8] * 8, [0] * 7 + [6]], pages=1, page_mean=False, scale_rounds=1)
    assert_same_codes(interpreted(codec, pages), jax.jit(encode_blocks)(codec, pages))


@pytest.mark.parametrize("stream", ["key", pytest.param("value", marks=pytest.mark.slow)])
def test_broken_and_constant_pages(stream: Any):
    codec, pages = codec_and_pages(stream, pages=3)
    pages = pages.at[0, 0, 0, 3, 5].set(jnp.nan).at[0, 1, 0, 7].set(jnp.inf).at[1, 0, 1, :, 9].set(-1e30)
    pages = pages.at[:, :, 2].set(0.1)
    assert_same_codes(interpreted(codec, pages), jax.jit(encode_blocks)(codec, pages))


@pytest.mark.parametrize(
    ("options", "tokens", "dim"),
    [
        ({"form": "quality"}, 128, 128),
        ({"heads_together": 2}, 128, 128),
        ({"block_size": 32}, 32, 128),
        ({}, 128, 64),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_take(options: dict[str, Any], tokens: int, dim: int):
    config = KltConfig(**options)
    codec = config.build(dim, tables=config.neutral_tables(dim, num_kv_heads=2))
    assert not KLT_PAGES.supports(codec, tokens, dim)


def test_caches_encode_with_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Where a GPU is the default device: a program for it has the kernels, one for a CPU has none."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    codec, pages = codec_and_pages("key")
    traced = jax.jit(lambda codec, pages: encode_blocks(codec, pages)).trace(codec, pages)
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert triton_kernels(lowered(lambda codec, pages: encode_blocks(codec, pages), codec, pages)) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("stream", ["key", "value"])
@pytest.mark.parametrize("options", [{}, {"block_size": 64}, {"page_mean": False, "scale_rounds": 5}], ids=str)
def test_codes_of_a_gpu_are_those_of_a_cpu(stream: Any, options: dict[str, Any]):
    codec, pages = codec_and_pages(stream, pages=32, **options)
    assert_codes_of_a_gpu_are_those_of_a_cpu(codec, pages)

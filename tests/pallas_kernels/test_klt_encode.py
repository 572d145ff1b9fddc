"""Pages encoded by the kernel are those that the codec encodes: interpreted, lowered for a GPU, and on one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from klt_streams import DIM, HEADS, random_tables

from kakeya_jax.codecs.klt import Klt, KltConfig
from kakeya_jax.pallas_kernels.encode.klt_pages import encode_klt_pages
from kakeya_jax.stream import encode_blocks

pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]riton.*:DeprecationWarning")
WIDTHS = [[8, 6, 4, 4, 2, 2, 0, 0], [6, 4, 4, 4, 2, 0, 0, 0]]


def codec_and_pages(stream: Any, widths: Any = WIDTHS, *, pages: int = 2, **options: Any) -> tuple[Klt, jax.Array]:
    """A codec of random tables, and two rows of pages of what it expects."""
    config = KltConfig(**options)
    codec = config.build(DIM, stream=stream, tables=random_tables(widths, 3, keys=stream == "key"))
    z = jax.random.normal(jax.random.key(4), (2, HEADS, pages, config.block_size, DIM))
    z = z * jnp.exp(jax.random.normal(jax.random.key(5), (*z.shape[:4], 1)))
    return codec, jnp.einsum("bkpne,ked->bkpnd", z, codec.synthesis) + codec.mean[None, :, None, None]


def assert_same_codes(found: Any, expected: Any) -> None:
    for mine, its in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.shape == its.shape
        assert mine.dtype == its.dtype
        assert np.mean(np.asarray(mine) != np.asarray(its)) < 5e-4


@pytest.mark.parametrize("stream", ["key", "value"])
@pytest.mark.parametrize("block_size", [64, 128])
def test_interpreted_codes_are_the_codecs(stream: Any, block_size: int):
    codec, pages = codec_and_pages(stream, block_size=block_size)
    found = jax.jit(lambda codec, pages: encode_klt_pages(codec, pages, interpret=True))(codec, pages)
    assert_same_codes(found, jax.jit(encode_blocks)(codec, pages))

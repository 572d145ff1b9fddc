"""Pages of ``turboquant`` encoded by one Triton kernel: a program for 64 or 128 tokens of a head.

Everything about them stays in registers between the reading of tokens and the writing of words. Levels are those that
the codec's options fix, and constants of the program; the rotation, in three parts, is all that it reads besides.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.codecs.turboquant import TurboQuant, TurboQuantCode, TurboQuantConfig, coordinate_levels
from kakeya_jax.lloyd_max import midpoints
from kakeya_jax.page_encoders import PageEncoder
from kakeya_jax.pallas_kernels.encode import bfloat16_parts
from kakeya_jax.pallas_kernels.encode.kernel_call import kernel_call
from kakeya_jax.pallas_kernels.encode.turboquant_page_program import Form, turboquant_program
from kakeya_jax.token_tiles import TILE
from kakeya_jax.typing import Array, Float, StreamName

_BITS = (2, 3, 4)
_DIMS = (64, 128)
_TOKENS = (128, 64)
"""Of a program: the first that divides a page."""

_TOKENS_PER_WARP = 16


def supports(codec: TurboQuant, tokens: int, head_dim: int) -> bool:
    """Whether the kernel takes pages of so many tokens: a multiple of 64, heads alone, without a sketch."""
    config = codec.config
    whole = tokens > 0 and tokens % _TOKENS[-1] == 0
    return config.bits in _BITS and not (config.qjl or config.mix_heads) and head_dim in _DIMS and whole


def encode_turboquant_pages(
    codec: TurboQuant, blocks: Float[Array, "B K pages n D"], *, interpret: bool = False
) -> TurboQuantCode:
    """The codes of pages, leaves ``[B, K, pages, ...]``.

    Args:
        codec: one that is supported, and
        blocks: its pages.
        interpret: run without a GPU, slowly.
    """
    lead, (n, dim) = blocks.shape[:3], blocks.shape[3:]
    form = _form(codec.config, codec.stream, next(tokens for tokens in _TOKENS if n % tokens == 0))
    coded = _codes(blocks.reshape(-1, n, dim), codec.rotation, form=form, interpret=interpret)
    words = jax.lax.bitcast_convert_type(coded["words"], jnp.uint8)
    return TurboQuantCode(
        indices=words.reshape(*lead, words.shape[1], words.shape[2] * words.shape[3]),
        scale=coded["scale"].reshape(*lead, n),
        signs=None,
        residual_norm=None,
    )


TURBOQUANT_PAGES = PageEncoder(supports=supports, encode=encode_turboquant_pages)
"""The encoder of ``TurboQuant``."""


# A function of arrays alone, so that layers share what is traced and compiled.


@functools.partial(jax.jit, static_argnames=("form", "interpret"))
def _codes(
    blocks: Float[Array, "pages n D"], rotation: Float[Array, "D D"], *, form: Form, interpret: bool
) -> dict[str, Array]:
    """Words ``[pages, rows, words]`` and scales ``[pages, n]``."""
    pages, n, dim = blocks.shape
    rows, columns = (n, dim) if form.stream == "key" else (n // TILE * dim, TILE)
    coded = {
        "words": jax.ShapeDtypeStruct((pages, rows, columns * form.bits // 32), jnp.int32),
        "scale": jax.ShapeDtypeStruct((pages, n), jnp.float16),
    }

    def turboquant_codes(**refs: Any) -> None:
        turboquant_program(refs, form)

    inputs = {"blocks": blocks, "map": bfloat16_parts.rounded(rotation)}
    grid, warps = (pages, n // form.tokens), form.tokens // _TOKENS_PER_WARP
    return kernel_call(turboquant_codes, grid, inputs, coded, interpret=interpret, warps=warps)


def _form(config: TurboQuantConfig, stream: StreamName, tokens: int) -> Form:
    levels = coordinate_levels(config.bits)
    found, unit = byte_levels(tuple(levels.tolist()))
    half = len(levels) // 2
    return Form(
        bits=config.bits,
        stream=stream,
        norm_correction=config.norm_correction,
        bounds=tuple(np.asarray(midpoints(levels))[half:].tolist()),
        sizes=tuple(2 * byte + 1 for byte in found[half:]),
        half_unit=unit / 2,
        tokens=tokens,
    )

"""Calibrated transform codec: Karhunen-Loeve coordinates in the Fisher metric, bits where the loss is.

For each head, calibration gives the mean ``mu``, a map ``A`` to coordinates whose plain error is the expected loss of
the model's predictions, and a layout that spends one bit budget over all layers, heads, streams and channel groups::

    z = ((x - mu) A - page mean) / deviation,    c = Q(z / s),    x^ = mu + (page mean + s gain c) B

with one log scale ``s`` per token, fitted by least squares. Everything around the codes ``c`` is linear, so a kernel
transforms the query once per page, accumulates in code space and transforms back once.

Two forms. ``fast``: what is coded of keys is ``R_d (k - mu)``, rotated by their position ``d`` *within the page*, so
that logits need no trigonometry per token, only a query rotated back by the page's start; channels take 0, 2, 4, 6
or 8 bits. ``quality``: keys before their rotary embedding, where their spectrum is steepest; channels take 0 to 6 or 8
bits, and K is reconstructed. No kernel reads its codes one by one, so ``trellis`` may quantise the channels of a token
along a trellis (``kakeya_jax.trellis``): the same bytes with a sixth to two fifths less squared error.

The mean of rotated keys, ``R_d mu``, turns with the position. It is known: a kernel makes the constant ``[page, D]``
from ``mu`` once, the same for all pages, and adds ``q' . R_d mu`` to the logit of position ``d``, with ``q'`` the query
rotated back by the page's start. That is one bias for each page, position and query: as many multiplications as a dense
key would take, but not a byte read for a token.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from kakeya_jax.codec import CodecConfig
from kakeya_jax.fitted_tables import fitted_table
from kakeya_jax.klt_layout import (
    FAST_WIDTHS,
    QUALITY_WIDTHS,
    Layout,
    Quantizer,
    allocate,
    channels_per_group,
    decoder_gain,
)
from kakeya_jax.klt_quantizers import dequantize, quantize
from kakeya_jax.klt_words import PageWords
from kakeya_jax.numeric import to_f16
from kakeya_jax.pytree import (
    fitted_field,
    payload_field,
    pytree_dataclass,
    side_field,
    static_field,
)
from kakeya_jax.rope import rotate_by
from kakeya_jax.typing import Array, Float, Int, RopeClass, StreamName

SCALE_STEPS = 16
"""Steps of an octave of the token scale."""

SCALE_ZERO = 128
"""Code of the scale 1; codes 0 to 255 span 2^-8 to 2^7.94."""

_FARTHEST = 64.0
"""Deviations from the mean that are told apart: farther, one broken value would move the mean of its whole page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KltConfig(CodecConfig):
    """A bit budget and how it may be spent; what it becomes for each head comes from calibration.

    Attributes:
        block_size: tokens of a page; with ``page_mean``, those that share a mean.
        bits: mean payload bits per value over all streams of a cache that have this very config. Scales and page
            means come on top: ``8 / D + 8 / block_size`` bits.
        form: ``"fast"`` or ``"quality"``, as above.
        page_mean: take out each page's own mean, stored in 8 bits for each channel.
        shared_layout: one layout for all heads of a stream, so that every head of a layer has equally many bytes.
        heads_together: key/value heads that share a transform and a token scale: what neighbouring heads have in common
            is then stored once. A kernel that attends with the queries of two heads at a time unpacks no more for it.
        scale_rounds: rounds of least squares for a token's scale.
        trellis: quantise along a trellis through the channels of a token; the quality form only.
    """

    name: ClassVar[str] = "klt"
    source: ClassVar[str] = "this library, docs/klt.md"
    rope: ClassVar[RopeClass] = "pre"
    joint_heads: ClassVar[bool] = True

    bits: float = 2.0
    form: Literal["fast", "quality"] = "fast"
    page_mean: bool = True
    shared_layout: bool = False
    heads_together: int = 1
    scale_rounds: int = 3
    trellis: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.25 <= self.bits <= 8:
            raise ValueError(f"klt: bits={self.bits} must be between 0.25 and 8")
        if self.block_size % 8:
            raise ValueError(f"klt: block_size={self.block_size} must be a multiple of 8")
        if self.heads_together < 1:
            raise ValueError(f"klt: heads_together={self.heads_together} must be at least 1")
        if not 1 <= self.scale_rounds <= 16:
            raise ValueError(f"klt: scale_rounds={self.scale_rounds} must be between 1 and 16")
        if self.trellis and self.form == "fast":
            raise ValueError("klt: trellis=true needs form=quality; kernels read a code of the fast form on its own")

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits that a channel may take, besides none."""
        return FAST_WIDTHS if self.form == "fast" else QUALITY_WIDTHS

    @property
    def quantizer(self) -> Quantizer:
        """What rounds channels."""
        return "trellis" if self.trellis else "scalar"

    def needs_tables(self) -> tuple[str, ...]:
        """Names of the calibrated tables; fast keys also take ``rope_frequencies``, which come from the model."""
        return TABLES

    def neutral_tables(self, head_dim: int, *, num_kv_heads: int = 1) -> dict[str, Array]:
        """See ``CodecConfig.neutral_tables``: identity maps; the layout of a spectrum that falls by half each group."""
        size, dim = channels_per_group(head_dim), head_dim * self.heads_together
        units = max(1, num_kv_heads // self.heads_together)
        falling = np.broadcast_to(0.5 ** np.arange(dim // size), (units, dim // size))
        identity = np.broadcast_to(np.eye(dim, dtype=np.float32), (units, dim, dim))
        tables = {
            "widths": allocate([falling], [3.0], self.bits, self.widths, self.quantizer)[0],
            "mean": np.zeros((units, dim), np.float32),
            "variances": np.ones((units, dim), np.float32),
            "analysis": identity,
            "synthesis": identity,
            "rope_frequencies": np.zeros(head_dim // 2, np.float32),
        }
        return {name: jnp.asarray(table) for name, table in tables.items()}

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Klt":
        """The codec of one stream, all its heads; ``calibration.klt_fit`` makes its tables.

        Raises:
            ValueError: a table is missing, was made for another size, or has widths that this form does not have.
        """
        where = f"klt, layer {layer}'s {stream}s"
        widths = fitted_table(tables, "widths", None, of=where)
        if isinstance(widths, Tracer):
            raise ValueError("klt: the table 'widths' decides shapes and cannot be traced; pass it as a concrete array")
        layout = Layout.of(np.asarray(widths))
        odd = set(layout.used_widths) - set(self.widths)
        if odd:
            raise ValueError(f"klt: table 'widths' has {sorted(odd)} bits, the form {self.form!r} has {self.widths}")
        units, dim = layout.num_heads, head_dim * self.heads_together
        if dim % layout.groups_per_head:
            raise ValueError(f"klt: {layout.groups_per_head} groups of channels do not divide {dim} channels")
        shapes = {
            "mean": (units, dim),
            "variances": (units, dim),
            "analysis": (units, dim, dim),
            "synthesis": (units, dim, dim),
            "rope_frequencies": (head_dim // 2,),
        }
        if not self._rotates(stream):
            del shapes["rope_frequencies"]
        arrays = {
            name: jnp.asarray(fitted_table(tables, name, shape, of=where), jnp.float32)
            for name, shape in shapes.items()
        }
        rope_frequencies = arrays.pop("rope_frequencies", None)
        return Klt(
            config=self,
            layout=layout,
            stream=stream,
            widths=jnp.asarray(widths, jnp.int8),
            rope_frequencies=rope_frequencies,
            **arrays,
        )

    def _rotates(self, stream: StreamName) -> bool:
        return self.form == "fast" and stream == "key"


TABLES = ("widths", "mean", "variances", "analysis", "synthesis")


@pytree_dataclass
class KltCode:
    """One page of all heads of a stream: ``U`` units (heads, or groups of them), ``n`` tokens, ``E`` channels each.

    Attributes:
        words: packed codes, uint8: head after head, in the order in which a kernel reads them (``klt_words``).
        scale: uint8 ``[U, n]``: ``2 ** ((code - 128) / 16)``.
        page_mean: int8 ``[U, E]``, in transform coordinates, and
        page_mean_scale: float16 ``[U]``; None without page means.
    """

    words: Array = payload_field()
    scale: Array = side_field()
    page_mean: Array | None = side_field()
    page_mean_scale: Array | None = side_field()


@pytree_dataclass
class Klt:
    """The codec of ``KltConfig`` for one stream: ``U`` units of ``E`` channels; usually a unit is a head.

    Attributes:
        mean: ``[U, E]``; of keys, in both forms, before any rotation.
        analysis: ``[U, E, E]``: ``(x - mean) @ analysis`` has unit variances; ``R_d (k - mean) @ analysis`` for keys in
            the fast form.
        synthesis: ``[U, E, E]``, its inverse.
        variances: ``[U, E]`` expected loss per unit of error of each transform coordinate, falling.
        widths: ``[U, G]`` the layout again, as an array.
        rope_frequencies: ``[D / 2]`` radians per token, for keys in the fast form.
    """

    config: KltConfig = static_field()
    layout: Layout = static_field()
    stream: StreamName = static_field()
    mean: Array = fitted_field()
    analysis: Array = fitted_field()
    synthesis: Array = fitted_field()
    variances: Array = fitted_field()
    widths: Array = fitted_field()
    rope_frequencies: Array | None = fitted_field()

    def encode(self, block: Float[Array, "K n D"], key: Array | None = None) -> KltCode:
        """The code of one page of all heads; draws nothing. Values far beyond calibration are clipped."""
        del key
        return _encode(self, block)

    def decode(self, code: KltCode) -> Float[Array, "K n D"]:
        """``mean + (page mean + s gain c) B``; where keys are rotated within the page, ``B`` rotated back."""
        scale = decode_scale(code.scale)
        coordinates = self.code_values(code) * scale[..., None] + self.page_mean_of(code)[:, None]
        deviations = _part(_map(coordinates, self.synthesis), self.config.heads_together)
        if self.rope_frequencies is not None:
            deviations = rotate_by(deviations, -_angles(self.rope_frequencies, deviations.shape[1]))
        return _mean_of_heads(self)[:, None] + deviations

    def code_values(self, code: KltCode) -> Float[Array, "U n E"]:
        """Dequantised levels times their decoder gain, in transform coordinates; zero where nothing is stored."""
        heads, dim = self.mean.shape
        n = code.scale.shape[-1]
        order = self.page_words(n)
        quantizer = self.config.quantizer
        levels = dequantize(self.layout, quantizer, order.unpack(code.words))
        classes = [
            each * decoder_gain(width, quantizer) for each, width in zip(levels, self.layout.used_widths, strict=True)
        ]
        classes.append(jnp.zeros((n, 1, order.size), jnp.float32))
        values = jnp.concatenate(classes, axis=1)[:, self.layout.position_of]
        return values.reshape(n, heads, dim).transpose(1, 0, 2)

    def page_words(self, n: int) -> PageWords:
        """Where the codes of a page of ``n`` tokens lie."""
        size = self.mean.shape[1] // self.layout.groups_per_head
        return PageWords(layout=self.layout, stream=self.stream, tokens=n, size=size)

    def page_mean_of(self, code: KltCode) -> Float[Array, "U E"]:
        """The page's own mean, in transform coordinates."""
        if code.page_mean is None or code.page_mean_scale is None:
            return jnp.zeros_like(self.mean)
        return code.page_mean.astype(jnp.float32) * code.page_mean_scale.astype(jnp.float32)[:, None]


def decode_scale(code: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``2 ** ((code - 128) / 16)``."""
    return jnp.exp2((code.astype(jnp.float32) - SCALE_ZERO) / SCALE_STEPS)


def encode_scale(scale: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The nearest code on the log axis, saturating at both ends."""
    steps = jnp.round(SCALE_STEPS * jnp.log2(jnp.maximum(scale, 2.0**-20)))
    return jnp.clip(steps + SCALE_ZERO, 0, 255).astype(jnp.uint8)


def farthest(codec: Klt) -> Float[Array, "U E"]:
    """How far from the mean a channel is told apart: what is farther is clipped, after any rotation."""
    return _FARTHEST * jnp.sqrt(jnp.sum(jnp.square(codec.synthesis), axis=1))


@jax.jit
def _encode(codec: Klt, block: Array) -> KltCode:
    """One compiled program even when called op by op: fused products round differently from separate ones."""
    z = _map(_deviations(codec, block), codec.analysis)
    page_mean = page_mean_scale = None
    if codec.config.page_mean:
        average = jnp.mean(z, axis=1)
        page_mean_scale = to_f16(jnp.max(jnp.abs(average), axis=1) / 127.0)
        unit = jnp.maximum(page_mean_scale.astype(jnp.float32), 1e-12)[:, None]
        page_mean = jnp.clip(jnp.round(average / unit), -127, 127).astype(jnp.int8)
        z = z - (page_mean.astype(jnp.float32) * page_mean_scale.astype(jnp.float32)[:, None])[:, None]
    groups = _stored_groups(codec.layout, z)
    weights = _stored_groups(codec.layout, codec.variances[:, None])[0]
    scale, codes = _fit_scale(codec, groups, weights)
    words = codec.page_words(block.shape[1]).pack(codes)
    return KltCode(words=words, scale=scale, page_mean=page_mean, page_mean_scale=page_mean_scale)


def _deviations(codec: Klt, block: Float[Array, "H n d"]) -> Float[Array, "K n D"]:
    """What is transformed: vectors about the calibrated mean, every channel within ``_FARTHEST`` of its deviations.

    The mean is taken out before keys are rotated: afterwards it would be another one at every position. Not the fixed
    range of ``numeric.finite``, for calibration knows each channel's own. NaN counts as 0.
    """
    x = jnp.nan_to_num(block.astype(jnp.float32), nan=0.0, posinf=1e30, neginf=-1e30)
    x = x - _mean_of_heads(codec)[:, None]
    if codec.rope_frequencies is not None:
        x = rotate_by(x, _angles(codec.rope_frequencies, x.shape[1]))
    centered, most = _join(x, codec.config.heads_together), farthest(codec)[:, None]
    return jnp.clip(centered, -most, most)


def _fit_scale(
    codec: Klt, groups: Float[Array, "n stored size"], weights: Float[Array, "stored size"]
) -> tuple[Int[Array, "K n"], list[Int[Array, "n groups size"]]]:
    """Each token's scale: least squares in the loss's metric, alternating with the codes it leads to; and those codes.

    The loop goes round once more than it fits, for the codes of the last scale: so quantising is compiled once.
    """
    layout, quantizer = codec.layout, codec.config.quantizer
    # A product with ones, for scattered additions have no fixed order.
    heads = np.arange(layout.num_heads)[:, None]
    belongs = (layout.stored // layout.groups_per_head == heads).astype(np.float32)
    channels = np.maximum(belongs.sum(axis=1) * codec.mean.shape[1] // layout.groups_per_head, 1.0)

    def sum_heads(values: Array) -> Float[Array, "K n"]:
        return jnp.einsum("kg,ngs->kn", belongs, values, precision="highest")

    def quantized(scale: Array) -> list[Array]:
        unit = groups / decode_scale(scale).T[:, layout.stored // layout.groups_per_head, None]
        return quantize(layout, quantizer, unit, weights)

    def turn(_: int, state: tuple[Array, Array, list[Array]]) -> tuple[Array, Array, list[Array]]:
        scale = state[1]
        codes = quantized(scale)
        levels = jnp.concatenate(dequantize(layout, quantizer, codes), axis=1)
        along, length = sum_heads(weights * groups * levels), sum_heads(weights * levels * levels)
        return scale, encode_scale(along / jnp.maximum(length, 1e-30)), codes

    start = encode_scale(jnp.sqrt(sum_heads(jnp.square(groups)) / channels[:, None]))
    if not layout.used_widths:
        return start, []
    shapes = jax.eval_shape(quantized, start)
    empty = [jnp.zeros(each.shape, each.dtype) for each in shapes]
    scale, _, codes = jax.lax.fori_loop(0, codec.config.scale_rounds + 1, turn, (start, start, empty))
    return scale, codes


def _stored_groups(layout: Layout, z: Float[Array, "K n D"]) -> Float[Array, "n stored size"]:
    """The channels that are stored, as they are stored: by width, head after head, group after group."""
    heads, n, _ = z.shape
    groups = z.transpose(1, 0, 2).reshape(n, heads * layout.groups_per_head, -1)
    return groups[:, layout.stored]


def _mean_of_heads(codec: Klt) -> Float[Array, "K D"]:
    return codec.mean.reshape(codec.mean.shape[0] * codec.config.heads_together, -1)


def _join(x: Float[Array, "K n D"], heads: int) -> Float[Array, "U n E"]:
    """Vectors of neighbouring heads side by side."""
    count, n, dim = x.shape
    return x.reshape(count // heads, heads, n, dim).transpose(0, 2, 1, 3).reshape(count // heads, n, heads * dim)


def _part(x: Float[Array, "U n E"], heads: int) -> Float[Array, "K n D"]:
    """The inverse of ``_join``."""
    units, n, width = x.shape
    return x.reshape(units, n, heads, width // heads).transpose(0, 2, 1, 3).reshape(units * heads, n, width // heads)


def _angles(frequencies: Array, n: int) -> Float[Array, "n half"]:
    return jnp.arange(n, dtype=jnp.float32)[:, None] * frequencies


def _map(x: Float[Array, "K n D"], matrix: Float[Array, "K D E"]) -> Float[Array, "K n E"]:
    return jnp.einsum("knd,kde->kne", x, matrix, precision="highest")

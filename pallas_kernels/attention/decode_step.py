"""One decode step of attention over packed codes and exact tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from kakeya_jax.pallas_kernels.attention.besicovitch_program import besicovitch_program
from kakeya_jax.pallas_kernels.attention.besicovitch_shape import BesicovitchShape
from kakeya_jax.pallas_kernels.attention.coded_program import coded_program
from kakeya_jax.pallas_kernels.attention.coded_shape import FOUR, TILE, CodedShape, Codes, TileShape
from kakeya_jax.pallas_kernels.attention.finish_shape import Back
from kakeya_jax.pallas_kernels.attention.float_program import float_program
from kakeya_jax.pallas_kernels.attention.float_shape import FloatCodes, FloatShape
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.program_counts import HeadShares, exact_programs
from kakeya_jax.pallas_kernels.attention.query_form import Coordinates, QueryForm
from kakeya_jax.pallas_kernels.attention.softmax_state import LN2, Attended
from kakeya_jax.pallas_kernels.attention.step_parts import attend_parts
from kakeya_jax.pallas_kernels.attention.window_program import WARPS
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, Float, Int, Shaped


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedStream:
    """Codes of all heads of a stream, as programs read them.

    Attributes:
        words: uint8, keys ``[N, T, D b / 8]``, values ``[N, T / 64, D, 8 b]``; with ``pairs``
            ``[N, T / 64, bytes]``; with ``FloatCodes`` ``[N, T, D]``, bits of e4m3, or bfloat16.
        scales: float16 ``[N, T, codes.scales]``, or ``[N, T / codes.tokens, D]``; with ``FloatCodes`` ``[N, T]``, or
            something that programs do not read.
        sinks: exact ``[N, sinks, D]``.
        tail: exact ``[N, tail, D]``, a ring.
        rotation: float32 ``[D, D]``: what is coded is this times a vector; of keys not read unless it is a rotation.
            None if vectors are coded as they are.
        coordinates: of the codes; of values only whether they are ``"hadamard"`` matters, else there is any matrix.
        codes: how ``words`` are packed.
        unit: of their levels.
        minima: as scales, if there are any.
        pairs: int32, what codes of pairs of channels decode to (``pair_table``), if they are that, and
        means: float16 ``[N, T / page, D]``, of their pages; None for none.
    """

    words: Shaped[Array, "..."]
    scales: Shaped[Array, "N T ..."]
    sinks: Float[Array, "N sinks D"]
    tail: Float[Array, "N tail D"]
    rotation: Float[Array, "D D"] | None
    codes: Codes | FloatCodes
    unit: float
    coordinates: Coordinates = "channels"
    minima: Float[Array, "N T scales"] | None = None
    pairs: np.ndarray | None = None
    means: Float[Array, "N pages D"] | None = None

    @property
    def back(self) -> Back:
        """What turns values back."""
        if self.rotation is None:
            return "nothing"
        return "hadamard" if self.coordinates == "hadamard" else "map"

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """What programs read of it; for minima that there are none of, something that they do not read."""
        return self.words, self.scales, self.scales if self.minima is None else self.minima


def decode_step(
    query: Float[Array, "N G D"],
    key: CodedStream,
    value: CodedStream,
    positions: Int[Array, " B"],
    *,
    geometry: Geometry,
    scale: float,
    shares: HeadShares,
    interpret: bool = False,
) -> Attended:
    """Attention of the newest token's queries, ``N = B K`` key/value heads with ``G <= 8`` queries each.

    Args:
        query: after their rotary embedding.
        key: keys, the queries' own token in them.
        value: values, likewise.
        positions: of the queries.
        geometry: of both streams.
        scale: factor of the logits.
        shares: of programs in the coded tokens of a head.
        interpret: in numpy, on any machine.
    """
    heads, group, dim = query.shape
    base_two = scale / LN2

    queries = QueryForm(
        dtype=query.dtype,
        scale=base_two * key.unit,
        parts=_parts_of_queries(key.codes),
        coordinates=key.coordinates,
    )
    program, coded, arrays = _program_of(
        key,
        value,
        [query, key.rotation if queries.rotated and key.rotation is not None else query],
        queries=queries,
        dim=dim,
        capacity=geometry.num_pages * geometry.page,
        group=group,
        splits=shares.splits,
        late=shares.late,
        weights=shares.weights,
        residents=shares.residents,
        states=shares.splits + exact_programs(geometry, heads, shares.splits, programs=shares.places),
    )
    return attend_parts(
        program,
        coded,
        arrays,
        query,
        positions,
        [key.sinks, key.tail, value.sinks, value.tail],
        [] if value.rotation is None else [value.rotation],
        jnp.zeros(heads, jnp.int32),
        geometry=geometry,
        scale=base_two,
        unit=value.unit,
        back=value.back,
        interpret=interpret,
        most_teams=shares.teams or most_teams(key, value, group, dim),
    )


def _parts_of_queries(key: Codes | FloatCodes) -> Any:
    """The type of their two parts, if they are not bytes."""
    if isinstance(key, FloatCodes):
        return key.multiplied
    return jnp.dtype(jnp.float16) if key.tokens else None


def most_teams(key: CodedStream, value: CodedStream, group: int, dim: int) -> int:
    """Programs in a block of threads: three, which bounds registers, where one alone takes so many that but two run on
    a multiprocessor: with more than four queries of 128 channels, if levels have minima, of e4m3 or pairs."""
    codes = key.codes, value.codes
    many = any(each.step > 0 if isinstance(each, Codes) else each.nbytes == 1 for each in codes)
    return 3 if group > FOUR and dim > 64 and (many or value.pairs is not None) else 1


def _program_of(
    key: CodedStream, value: CodedStream, of_queries: list[Array], *, queries: QueryForm, capacity: int, **sizes: Any
) -> tuple[Callable[..., None], TileShape, list[Array]]:
    """The program that attends to coded tokens, its sizes, and what it reads, ``of_queries`` and of tokens."""
    if isinstance(key.codes, FloatCodes) and isinstance(value.codes, FloatCodes):
        shape = FloatShape(key=key.codes, value=value.codes, capacity=capacity, queries=queries, warps=WARPS, **sizes)
        return float_program, shape, [*of_queries, key.words, key.scales, value.words, value.scales]
    assert isinstance(key.codes, Codes)
    assert isinstance(value.codes, Codes)
    if value.pairs is None:
        shape = CodedShape(key=key.codes, value=value.codes, capacity=capacity, queries=queries, warps=WARPS, **sizes)
        held = jnp.asarray(HeldWords(shape.codes).words)
        return coded_program, shape, [held, *of_queries, *key.arrays, *value.arrays]
    means = value.scales if value.means is None else value.means  # an array in any case
    page = TILE if value.means is None else capacity // value.means.shape[1]
    shape = BesicovitchShape(
        key=key.codes,
        value=value.codes,
        page=page,
        capacity=capacity,
        queries=queries,
        warps=WARPS,
        means=value.means is not None,
        **sizes,
    )
    held = jnp.asarray(HeldWords(shape.codes).words)
    of_values = [value.words, value.scales, jnp.asarray(value.pairs), means]
    return besicovitch_program, shape, [held, *of_queries, *key.arrays, *of_values]

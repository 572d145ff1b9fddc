"""What a codec is: a frozen config, the codec it builds, and the code that is stored.

    config  ->  codec  ->  code
    frozen, hashable,      pytree: static config,      pytree of packed words and side information;
    validated, JSON        tables as leaves            leading axes are batch axes

``encode`` and ``decode`` are pure functions of one block ``[n, d]``; callers ``vmap`` them over batch, heads
and blocks.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from kakeya_jax import numeric
from kakeya_jax.typing import Array, Float, RopeClass, StreamName


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Hyper-parameters of a codec: hashable, checked on construction, JSON-able.

    Attributes:
        block_size: tokens coded together. Codecs that treat every token alone accept any size; it is then only the
            page size of the cache.
        mix_heads: code the vectors of all key/value heads together, as KakeyaTurbo does: what a block shares (basis,
            mean, centres) is then stored once for all heads. Without it every head has its own blocks.
        static_mean: take each head's calibrated mean out before coding and add it back after (see ``frame``).
        whiten: map keys so that plain error is the error of attention logits, by the calibrated second moment of the
            queries (see ``whitening``).
        max_condition: of ``whiten``: bound on the condition number of that map, above 1, for example 50; None for none.
            The least ridge that keeps it is added (``whitening.logit_map``). Where queries look along few directions
            the plain map's is in the thousands, and directions that calibration saw no query along lose most.
    """

    name: ClassVar[str]
    """The method's name in recipes and tables."""
    source: ClassVar[str]
    """Where the method comes from: the paper with its arXiv id, the project, or "this library"."""
    rope: ClassVar[RopeClass] = "post"
    """Whether K is stored before or after its rotary embedding unless a rule says otherwise."""
    joint_heads: ClassVar[bool] = False
    """Whether a block is ``[K, n, d]``, all heads of a stream, because their codes differ in size."""
    joint_streams: ClassVar[bool] = False
    """Whether a block is ``[2 K, n, d]``, a layer's heads of keys, then those of values: one rule must give both."""

    block_size: int = 128
    mix_heads: bool = False
    static_mean: bool = False
    whiten: bool = False
    max_condition: float | None = None

    def __post_init__(self) -> None:
        for option, kind in _option_types(type(self)).items():
            value = getattr(self, option)
            if not _is_of(value, kind):
                raise ValueError(f"{self.name}: {option}={value!r} must be {_describe(kind)}")
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1")
        if self.max_condition is not None and not 1 < self.max_condition < math.inf:
            raise ValueError(f"{self.name}: max_condition={self.max_condition} must be above 1; 50 is usual")
        if self.max_condition is not None and not self.whiten:
            raise ValueError(f"{self.name}: max_condition={self.max_condition:g} is of whitening; add whiten=true")
        if self.joint_heads and (self.mix_heads or self.static_mean or self.whiten):
            raise ValueError(
                f"{self.name} has its own mean and map for every head: it takes no mix_heads, static_mean or whiten"
            )

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Codec":
        """The codec for one layer's stream.

        Args:
            head_dim: dimension of the vectors.
            layer: layer index; methods that seed a rotation for each layer use it.
            stream: ``"key"`` or ``"value"``.
            tables: calibrated tables by name, for methods that take them.

        Raises:
            ValueError: the method cannot code vectors of this size, or needs a table that is not given.
        """
        raise NotImplementedError

    def needs_tables(self) -> tuple[str, ...]:
        """Names of the calibrated tables without which ``build``, or the frame around the codec, is refused.

        Methods that take tables of their own extend it. The ``rope_frequencies`` of a static mean come from the model,
        not from a text, and are not listed.
        """
        names = ("static_mean",) if self.static_mean else ()
        return names + (("whitening", "unwhitening") if self.whiten else ())

    def neutral_tables(self, head_dim: int, *, num_kv_heads: int = 1) -> dict[str, Array]:
        """Stand-ins of the right shapes for ``needs_tables``, to count bytes or to time without calibration.

        They change as little as tables can: zero means, identity maps, unit scales, Gaussian levels. Quality measured
        with them says nothing about the method.
        """
        identity = jnp.broadcast_to(jnp.eye(head_dim), (num_kv_heads, head_dim, head_dim))
        tables = {}
        if self.static_mean:
            tables["static_mean"] = jnp.zeros((num_kv_heads, head_dim))
            tables["rope_frequencies"] = jnp.zeros(head_dim // 2)
        if self.whiten:
            tables |= {"whitening": identity, "unwhitening": identity}
        return tables


@runtime_checkable
class Codec(Protocol):
    """A pytree that encodes and decodes one block of vectors."""

    @property
    def config(self) -> Any:
        """The ``CodecConfig`` it was built from (static)."""
        ...

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> Any:
        """The code of one block. ``key`` is a PRNG key for methods that draw at encode time; most draw nothing."""
        ...

    def decode(self, code: Any) -> Float[Array, "n d"]:
        """The float32 reconstruction of one block."""
        ...


def round_trip(
    codec: Codec, blocks: Float[Array, "*batch n d"], *, check_finite: bool = False
) -> Float[Array, "*batch n d"]:
    """``decode(encode(.))`` of every block, vmapped over all leading axes; float32.

    Args:
        codec: what to code with. If its config says ``joint_heads``, a block is ``[heads, n, d]`` and the axis of heads
            is no leading axis: it is coded as one.
        blocks: the blocks. NaN counts as 0, huge values are clipped (``numeric.finite``; ``identity`` keeps them).
        check_finite: refuse NaN and infinities instead; only outside ``jit``.

    Raises:
        ValueError: with ``check_finite``, if a value is NaN or infinite; the message says how many are.
    """
    if check_finite:
        numeric.check_finite(blocks, "blocks")

    def one(block: Array) -> Array:
        return codec.decode(codec.encode(block))

    fn = one
    for _ in blocks.shape[: -3 if codec.config.joint_heads else -2]:
        fn = jax.vmap(fn)
    return fn(blocks)


@functools.cache
def _option_types(config: type[CodecConfig]) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _is_of(value: Any, kind: Any) -> bool:
    """Whether an option has its declared type; a whole number may stand for a float, a truth value for neither."""
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(_is_of(value, part) for part in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(_describe(part) for part in typing.get_args(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(kind, str(kind))

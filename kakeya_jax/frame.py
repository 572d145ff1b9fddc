"""The coordinates a stream is coded in: a calibrated mean per head taken out, a linear map per head applied.

Both are options of every codec (``CodecConfig.static_mean``, ``CodecConfig.whiten``): they happen before it encodes and
are undone after it decodes, so a codec never knows. What a head's mean costs is one vector for a model's lifetime; what
it saves is the 40 to 80 % of the energy of keys that no token carries any information in.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from kakeya_jax.codec import CodecConfig
from kakeya_jax.fitted_tables import fitted_table
from kakeya_jax.numeric import finite
from kakeya_jax.pytree import fitted_field, pytree_dataclass
from kakeya_jax.rope import rotate_by
from kakeya_jax.typing import Array, Float, Int, RopeClass


@pytree_dataclass
class Frame:
    """``x -> (x - mean) whitening`` and back, for each head.

    Attributes:
        static_mean: ``[K, D]`` mean of the stream; of keys, before their rotary embedding. None for none.
        whitening: ``[K, D, D]`` map applied to row vectors, and
        unwhitening: ``[K, D, D]`` its inverse. None for none.
        rope_frequencies: ``[D / 2]`` radians per position: the mean is rotated to each token's position, for keys
            that are stored after their rotary embedding (whose constant factor, if it has one, is in the mean). None
            otherwise.
    """

    static_mean: Array | None = fitted_field()
    whitening: Array | None = fitted_field()
    unwhitening: Array | None = fitted_field()
    rope_frequencies: Array | None = fitted_field()

    def enter(self, x: Float[Array, "B K T D"], positions: Int[Array, "#B T"]) -> Float[Array, "B K T D"]:
        """Vectors in the coordinates that the codec sees."""
        if self.static_mean is not None:
            x = x - self._mean_at(positions)
        if self.whitening is None:
            return x
        return _map(finite(x), self.whitening)  # the map would spread one NaN over its whole vector

    def leave(self, x: Float[Array, "B K T D"], positions: Int[Array, "#B T"]) -> Float[Array, "B K T D"]:
        """The inverse of ``enter``."""
        if self.unwhitening is not None:
            x = _map(x, self.unwhitening)
        return x if self.static_mean is None else x + self._mean_at(positions)

    def _mean_at(self, positions: Array) -> Array:
        assert self.static_mean is not None
        mean = self.static_mean[None, :, None, :]
        if self.rope_frequencies is None:
            return mean
        angle = positions[:, None, :, None].astype(jnp.float32) * self.rope_frequencies
        return rotate_by(mean, angle)


def build_frame(
    config: CodecConfig, rope: RopeClass | None, num_kv_heads: int, head_dim: int, tables: Mapping[str, Array] | None
) -> Frame | None:
    """The frame that a codec's options ask for, from calibrated tables; None if they ask for none.

    Raises:
        ValueError: a table is missing or of another shape, or whitening is asked of keys stored after their rotary
            embedding (the query's second moment is known before it only).
    """
    if not (config.static_mean or config.whiten):
        return None
    check_frame(config, rope)

    def table(name: str, shape: tuple[int, ...]) -> Array:
        return jnp.asarray(fitted_table(tables, name, shape, of=config.name), jnp.float32)

    square = (num_kv_heads, head_dim, head_dim)
    return Frame(
        static_mean=table("static_mean", square[:2]) if config.static_mean else None,
        whitening=table("whitening", square) if config.whiten else None,
        unwhitening=table("unwhitening", square) if config.whiten else None,
        rope_frequencies=(
            table("rope_frequencies", (head_dim // 2,)) if config.static_mean and rope == "post" else None
        ),
    )


def check_frame(config: CodecConfig, rope: RopeClass | None) -> None:
    """Raises a ``ValueError`` if whitening is asked of anything but keys stored before their rotary embedding."""
    if config.whiten and rope != "pre":
        raise ValueError(
            f"{config.name}: whiten=true is for keys stored before their rotary embedding; write key@pre={config.name}"
            "(whiten=true)"
        )


def _map(x: Array, matrix: Array) -> Array:
    return jnp.einsum("bktd,kde->bkte", x, matrix, precision="highest")

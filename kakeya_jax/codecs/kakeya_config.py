"""Settings of the Kakeya block codec (``kakeya``): what they mean, what they need, what they refuse."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import jax.numpy as jnp

from kakeya_jax import hadamard, lloyd_max, smallrng
from kakeya_jax.codec import CodecConfig
from kakeya_jax.fitted_tables import fitted_table
from kakeya_jax.residual_code import GroupFormat
from kakeya_jax.typing import Array, RopeClass, StreamName

if TYPE_CHECKING:
    from kakeya_jax.codecs.kakeya import Kakeya


@dataclasses.dataclass(frozen=True, kw_only=True)
class KakeyaConfig(CodecConfig):
    """Principal components for every block (or one shared set), then 1 to 4 bits for each coefficient.

    All shapes are static, so two things differ from the reference: a ``variance_ratio`` below one sets the
    coefficients beyond the effective rank of a block to zero but stores as many, and outliers have a fixed
    number of slots.

    Attributes:
        block_size: tokens that share a skeleton (mean, basis and centres).
        bits: 1 to 4 for each of ``L`` coefficients, ``L`` the power of two at or above the rank.
        pca: ``"exact"``; ``"randomized"`` from a sketch of ``rank + oversample`` random columns; or
            ``"frequent_directions"`` from one of ``2 (rank + oversample)`` rows.
        rank: coefficients kept, or, below 1, the share of ``D``; None for all ``D`` (exact) or half of them (sketches).
        variance_ratio: keep only the leading components that hold this share of a block's variance (of the
            sketch's variance if randomized); 1 keeps ``rank`` of them.
        oversample: how much larger than the rank the sketch is.
        power_iterations: of the random sketch.
        skeleton_dtype: of the stored mean and basis. Centres, projections and norms are always float16.
        basis: ``"block"``, or ``"shared"`` for one mean and basis in the tables ``"mean"`` ``[D]`` and
            ``"basis"`` ``[rank, D]`` (``fit_shared`` makes them); centres stay per block.
        kmeans_centers: directions of each block; 0 for none: all of a vector's coefficients are quantised, and neither
            centres nor ids and projections are stored.
        kmeans_iterations: bound on the assignment passes.
        centroids: ``"gaussian"``; ``"calibrated"`` for levels in the table ``"centroids"`` ``[2**bits]``; or
            ``"pooled"`` for one such table for all layers. `kakeya calibrate --recipe` fits them; any ascending table
            of that size does, such as one that ``level_file.load_levels`` reads.
        outlier_threshold: entries of ``z`` (root mean square one) beyond it are also stored as float16; None
            for none.
        outlier_slots: the most entries of a vector that are stored, those of largest magnitude; each takes
            ``log2(L) + 16`` bits, used or not. None for the mean and one deviation of the number a Gaussian
            has.
        residual: ``"lloyd"`` codes each entry of ``z`` by itself; ``"besicovitch"`` codes ``group_size`` of them as one
            of ``2**direction_bits`` directions and a signed magnitude, of ``magnitude_bits`` or as float16. It takes
            no ``bits``, ``centroids`` or outliers.
        weights: ``"attention"`` weights keys in the statistics of their block (mean, components, centres) by
            ``attention_weights.logit_energy``. Nothing more is stored. Unless the keys are whitened it needs the table
            ``"query_second_moment"`` ``[D, D]``. Whether it helps depends on the model: measure it.
        exact_rows: vectors of a block that are kept as float16, with their index, and left out of its statistics:
            those of largest weight, or, without weights, farthest from the block's mean. Of mixed heads all together.
        seed: of signs, first centres and, with a fixed offset, the sketch.
    """

    name: ClassVar[str] = "kakeya"
    source: ClassVar[str] = "KakeyaTurbo"
    rope: ClassVar[RopeClass] = "pre"

    block_size: int = 512
    bits: int = 3
    pca: Literal["exact", "randomized", "frequent_directions"] = "exact"
    rank: int | float | None = None
    variance_ratio: float = 1.0
    oversample: int = 8
    power_iterations: int = 2
    skeleton_dtype: Literal["float16", "float32"] = "float16"
    basis: Literal["block", "shared"] = "block"
    kmeans_centers: int = 16
    kmeans_iterations: int = 32
    centroids: Literal["gaussian", "calibrated", "pooled"] = "gaussian"
    outlier_threshold: float | None = None
    outlier_slots: int | None = None
    residual: Literal["lloyd", "besicovitch"] = "lloyd"
    group_size: int = 2
    direction_bits: int = 3
    magnitude: Literal["quantized", "float16"] = "quantized"
    magnitude_bits: int = 3
    weights: Literal["none", "attention"] = "none"
    exact_rows: int = 0
    seed: int = 0xCAFEBABE

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("bits", self.bits, 1, 4)
        _check_range("group_size", self.group_size, 2, 8)
        _check_range("direction_bits", self.direction_bits, 1, 8)
        _check_range("magnitude_bits", self.magnitude_bits, 1, 4)
        _check_range("exact_rows", self.exact_rows, 0, self.block_size - 1)
        if self.rank is not None and not (self.rank >= 1 if isinstance(self.rank, int) else 0 < self.rank < 1):
            raise ValueError(f"kakeya: rank={self.rank} must be a whole number of at least 1, or a share below 1")
        _check_range("oversample", self.oversample, 0)
        _check_range("power_iterations", self.power_iterations, 0)
        _check_range("kmeans_centers", self.kmeans_centers, 0, 2**16)
        _check_range("kmeans_iterations", self.kmeans_iterations, 0)
        _check_range("outlier_slots", 1 if self.outlier_slots is None else self.outlier_slots, 1)
        _check_range("seed", self.seed, 0, 2**64 - 1)
        if not 0.0 < self.variance_ratio <= 1.0:
            raise ValueError(f"kakeya: variance_ratio={self.variance_ratio} must be above 0 and at most 1")
        if self.basis == "shared" and self.variance_ratio < 1.0:
            raise ValueError("kakeya: a shared basis has one rank for all blocks; use rank instead of variance_ratio")
        if self.outlier_threshold is not None and not self.outlier_threshold >= 0.1:
            raise ValueError(f"kakeya: outlier_threshold={self.outlier_threshold} must be at least 0.1")
        if self.outlier_threshold is None and self.outlier_slots is not None:
            raise ValueError("kakeya: outlier_slots needs an outlier_threshold, for example 2.0")
        if self.residual == "besicovitch" and (self.outlier_threshold is not None or self.centroids != "gaussian"):
            raise ValueError("kakeya: residual='besicovitch' takes no outliers and no centroids; remove them")

    def rank_of(self, head_dim: int) -> int:
        """The rank for vectors of dimension ``head_dim``.

        Raises:
            ValueError: ``rank`` is larger than that.
        """
        if self.rank is None:
            return head_dim if self.pca == "exact" else max(1, head_dim // 2)
        if isinstance(self.rank, float):
            return max(1, int(self.rank * head_dim))
        if self.rank > head_dim:
            raise ValueError(f"kakeya: rank={self.rank} must be at most head_dim={head_dim}")
        return self.rank

    @property
    def groups(self) -> GroupFormat | None:
        """How groups of the residual are stored; None if every entry is coded by itself."""
        if self.residual == "lloyd":
            return None
        return GroupFormat(self.group_size, self.direction_bits, self.magnitude, self.magnitude_bits)

    def needs_tables(self) -> tuple[str, ...]:
        """See ``CodecConfig.needs_tables``."""
        names = super().needs_tables()
        names += ("mean", "basis") if self.basis == "shared" else ()
        names += ("centroids",) if self.centroids != "gaussian" else ()
        return names + (("query_second_moment",) if self.weights == "attention" and not self.whiten else ())

    def neutral_tables(self, head_dim: int, *, num_kv_heads: int = 1) -> dict[str, Array]:
        """See ``CodecConfig.neutral_tables``."""
        own = {
            "mean": jnp.zeros(head_dim),
            "basis": jnp.eye(self.rank_of(head_dim), head_dim),
            "centroids": jnp.asarray(lloyd_max.gaussian_levels(self.bits)),
            "query_second_moment": jnp.eye(head_dim),
        }
        needed = self.needs_tables()
        return super().neutral_tables(head_dim, num_kv_heads=num_kv_heads) | {
            name: table for name, table in own.items() if name in needed
        }

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Kakeya":
        """The codec for vectors of dimension ``head_dim``.

        Raises:
            ValueError: ``rank`` exceeds ``head_dim``, a table is missing or has the wrong shape, groups do not divide
                the padded rank, or values are to be weighted by attention.
        """
        del layer
        rank = self.rank_of(head_dim)
        length = hadamard.next_power_of_two(rank)
        if self.residual == "besicovitch" and length % self.group_size:
            raise ValueError(f"kakeya: group_size={self.group_size} must divide the padded rank of {length}")
        if self.weights == "attention" and stream == "value":
            raise ValueError("kakeya: weights='attention' is for keys; an encoder of values does not see them")
        mean = basis = levels = moment = None
        take = functools.partial(fitted_table, tables, of="kakeya")
        if "query_second_moment" in self.needs_tables():
            moment = jnp.asarray(take("query_second_moment", (head_dim, head_dim), hint=_MOMENT_HINT), jnp.float32)
        if self.basis == "shared":
            mean = jnp.asarray(take("mean", (head_dim,), hint=_SHARED_HINT), self.skeleton_dtype)
            basis = jnp.asarray(take("basis", (rank, head_dim), hint=_SHARED_HINT), self.skeleton_dtype)
        if self.centroids != "gaussian":
            given = take("centroids", (2**self.bits,), hint=_CENTROIDS_HINT)
            lloyd_max.check_table("kakeya", given)
            levels = jnp.asarray(given, jnp.float32)
        from kakeya_jax.codecs.kakeya import Kakeya  # the codec is made of this module's config

        return Kakeya(
            config=self,
            rank=rank,
            signs=jnp.asarray(smallrng.signs(self.seed, length)),
            centroids=levels,
            mean=mean,
            basis=basis,
            query_second_moment=moment,
        )


_SHARED_HINT = (
    "fit it with `kakeya calibrate MODEL --recipe RECIPE` (in Python: kakeya.fit_shared on the stream's vectors), or "
    "use basis='block'"
)
_CENTROIDS_HINT = (
    "fit it with `kakeya calibrate MODEL --recipe RECIPE` (in Python: lloyd_max.fit_levels on standard_residual), or "
    "use centroids='gaussian'"
)
_MOMENT_HINT = "it is the mean outer product of the layer's queries before their rotary embedding, or use whiten=true"


def _check_range(option: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"kakeya: {option}={value} must be {bound}")

"""What every codec promises, over every registered codec at several settings."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import nbytes, payload_nbytes
from kakeya_jax.codec import Codec, CodecConfig, round_trip
from kakeya_jax.codecs.fitting import fit_own_tables
from kakeya_jax.codecs.registry import codec_class, codec_config, codec_names
from kakeya_jax.outliers import default_slots
from kakeya_jax.testing import synthetic_kv
from kakeya_jax.typing import StreamName

HEAD_DIMS = (64, 128)
MARGIN = 1.03
"""A pinned error may be exceeded by 3 %: the room that another BLAS or compiler needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A setting, its all-in bits per value, and its measured relative MSE on synthetic keys and values."""

    codec: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    bits: Callable[[int, int], float]
    """All-in bits per value of a block of ``n`` vectors of dimension ``d``."""
    errors: dict[int, tuple[float, float]]
    """By head dimension: relative MSE of keys, of values."""

    @property
    def config(self) -> CodecConfig:
        return codec_config(self.codec, **self.options)

    def build(self, d: int, *, layer: int = 0, stream: StreamName = "key") -> Codec:
        """The codec; if it needs calibrated tables, they are fitted to the first of the four blocks."""
        return self.config.build(d, layer=layer, stream=stream, tables=own_tables(self.config, d, stream))

    def __str__(self) -> str:
        return "-".join([self.codec, *(f"{name}={value}" for name, value in self.options.items())])


def kakeya_bits(n: int, d: int, bits: int, rank: int, outlier_slots: int = 0, *, own_basis: bool = True) -> float:
    length = 1 << (rank - 1).bit_length()
    outlier = 16 * outlier_slots + 8 * math.ceil(outlier_slots * math.log2(length) / 8)
    vector = length * bits + 4 + 16 + 16 + outlier  # indices, segment of 16, projection, norm
    skeleton = 16 * ((d + rank * d) * own_basis + 16 * rank)  # mean, basis, centres
    return (n * vector + skeleton) / (n * d)


CASES = [
    Case(codec="identity", bits=lambda n, d: 16, errors={64: (2.463e-6, 2.700e-6), 128: (2.549e-6, 2.734e-6)}),
    Case(
        codec="fp8",
        bits=lambda n, d: 8 + 16 / d,
        errors={64: (3.475e-4, 6.290e-4), 128: (4.303e-4, 6.581e-4)},
    ),
    Case(
        codec="fp8",
        options={"scale": None},
        bits=lambda n, d: 8,
        errors={64: (6.298e-4, 7.015e-4), 128: (6.501e-4, 7.059e-4)},
    ),
    Case(
        codec="int8",
        bits=lambda n, d: 8 + 16 / d,
        errors={64: (1.681e-4, 3.529e-5), 128: (2.425e-4, 4.203e-5)},
    ),
    Case(
        codec="int8",
        options={"group_size": 32},
        bits=lambda n, d: 8.5,
        errors={64: (8.914e-5, 2.828e-5), 128: (1.009e-4, 2.835e-5)},
    ),
    Case(codec="int4", bits=lambda n, d: 4.5, errors={64: (0.02828, 0.009281), 128: (0.03221, 0.009471)}),
    Case(
        codec="int4",
        options={"affine": True},
        bits=lambda n, d: 5,
        errors={64: (0.009769, 0.006093), 128: (0.009578, 0.006123)},
    ),
    Case(
        codec="kivi",
        options={"bits": 2},
        bits=lambda n, d: 3,
        errors={64: (0.01982, 0.1544), 128: (0.009969, 0.1548)},
    ),
    Case(
        codec="kivi",
        options={"bits": 4},
        bits=lambda n, d: 5,
        errors={64: (7.745e-4, 0.006093), 128: (3.959e-4, 0.006123)},
    ),
    Case(
        codec="kivi",
        options={"bits": 2, "group_size": 64},
        bits=lambda n, d: 2.5,
        errors={64: (0.02775, 0.2019), 128: (0.01412, 0.2033)},
    ),
    *(
        Case(
            codec="turboquant",
            options={"bits": bits},
            bits=lambda n, d, bits=bits: bits + 16 / d,
            errors=errors,
        )
        for bits, errors in (
            (1, {64: (0.3578, 0.3923), 128: (0.3985, 0.3954)}),
            (2, {64: (0.1094, 0.1164), 128: (0.1115, 0.1165)}),
            (3, {64: (0.03203, 0.03350), 128: (0.02916, 0.03304)}),
            (4, {64: (0.008596, 0.009141), 128: (0.008922, 0.009065)}),
            (8, {64: (3.726e-5, 3.786e-5), 128: (3.754e-5, 3.882e-5)}),
        )
    ),
    Case(
        codec="turboquant",
        options={"bits": 3, "qjl": True},
        bits=lambda n, d: 3 + 32 / d,
        errors={64: (0.06144, 0.06436), 128: (0.06305, 0.06616)},
    ),
    Case(
        codec="turboquant",
        options={"bits": 3, "rotation": "hadamard"},
        bits=lambda n, d: 3 + 16 / d,
        errors={64: (0.02821, 0.03280), 128: (0.03070, 0.03389)},
    ),
    *(
        Case(
            codec="lattice",
            options=options,
            bits=lambda n, d, index_bits=index_bits, scales=scales: index_bits + scales / d,
            errors=errors,
        )
        for options, index_bits, scales, errors in (
            ({"lattice": "d4", "scale_levels": 4}, 12 / 4, 32, {64: (0.04124, 0.04562), 128: (0.04205, 0.05649)}),
            ({"lattice": "d4", "scale_levels": 10}, 17 / 4, 32, {64: (0.006651, 0.007472), 128: (0.006671, 0.009063)}),
            ({"lattice": "e8", "scale_levels": 4}, 25 / 8, 32, {64: (0.02802, 0.03082), 128: (0.02799, 0.03743)}),
            ({"lattice": "e8", "scale_levels": 10}, 35 / 8, 32, {64: (0.004441, 0.004957), 128: (0.004446, 0.005999)}),
            ({"scale_levels": 38}, 51 / 8, 32, {64: (3.105e-4, 3.417e-4), 128: (3.099e-4, 4.154e-4)}),
            ({"scale_levels": 4, "one_scale": True}, 25 / 8, 16, {64: (0.02802, 0.03082), 128: (0.02799, 0.03743)}),
        )
    ),
    *(
        Case(
            codec="besicovitch",
            options={"direction_bits": 3, "magnitude_bits": bits},
            bits=lambda n, d, bits=bits: (3 + bits) / 2 + 16 / d + 16 / n,
            errors=errors,
        )
        for bits, errors in (
            (1, {64: (0.02801, 0.2093), 128: (0.02106, 0.2202)}),
            (2, {64: (0.01080, 0.07677), 128: (0.01000, 0.08242)}),
            (3, {64: (0.004750, 0.03189), 128: (0.005101, 0.03347)}),
            (4, {64: (0.002725, 0.01793), 128: (0.002996, 0.01830)}),
        )
    ),
    Case(
        codec="besicovitch",
        options={"direction_bits": 6, "magnitude": "float16"},
        bits=lambda n, d: (6 + 16) / 2 + 16 / n,
        errors={64: (2.935e-5, 1.975e-4), 128: (1.468e-5, 2.002e-4)},
    ),
    Case(
        codec="besicovitch",
        options={"magnitude_levels": "reference"},
        bits=lambda n, d: (3 + 4) / 2 + 16 / d + 16 / n,
        errors={64: (0.004941, 0.03483), 128: (0.004825, 0.03877)},
    ),
    Case(
        codec="besicovitch",
        options={"group_size": 4, "direction_bits": 6, "subtract_mean": False},
        bits=lambda n, d: (6 + 4) / 4 + 16 / d,
        errors={64: (0.2466, 0.2364), 128: (0.3921, 0.2532)},
    ),
    *(
        Case(
            codec="riemannian",
            options=options,
            bits=lambda n, d, bits=bits: bits / 2 + 16 / n,
            errors=errors,
        )
        for options, bits, errors in (
            ({"direction_bits": 3}, 7, {64: (0.003005, 0.02465), 128: (0.001607, 0.02783)}),
            ({"direction_bits": 6, "scale_mode": "pct99"}, 10, {64: (0.001332, 0.01489), 128: (7.839e-4, 0.01728)}),
            ({"magnitude_bits": 3, "scale_mode": "sqrt_trace"}, 7, {64: (0.004456, 0.0473), 128: (0.002516, 0.04702)}),
            ({"centroids": "gaussian", "scale_mode": "pct999"}, 8, {64: (0.001675, 0.01816), 128: (9.639e-4, 0.01888)}),
            ({"centroids": "quantile", "scale_mode": "pct95"}, 8, {64: (0.01074, 0.1228), 128: (0.005016, 0.1106)}),
            ({"direction_bits": 8, "magnitude": "float16"}, 24, {64: (1.837e-6, 1.223e-5), 128: (9.088e-7, 1.222e-5)}),
        )
    ),
    Case(
        codec="kakeya",
        options={"bits": 4, "block_size": 256},
        bits=lambda n, d: kakeya_bits(n, d, 4, d),
        errors={64: (2.36e-4, 0.005985), 128: (1.585e-4, 0.006516)},
    ),
    Case(
        codec="kakeya",
        options={"bits": 3, "block_size": 256, "outlier_threshold": 2.0},
        bits=lambda n, d: kakeya_bits(n, d, 3, d, default_slots(d, 2.0)),
        errors={64: (7.765e-4, 0.01846), 128: (5.134e-4, 0.01972)},
    ),
    Case(
        codec="kakeya",
        options={"block_size": 256, "pca": "frequent_directions"},
        bits=lambda n, d: kakeya_bits(n, d, 3, d // 2),
        errors={64: (0.001637, 0.1428), 128: (7.497e-4, 0.09713)},
    ),
    Case(
        codec="kakeya",
        options={"block_size": 256, "residual": "besicovitch", "direction_bits": 4, "magnitude_bits": 4},
        bits=lambda n, d: kakeya_bits(n, d, 4, d),
        errors={64: (2.293e-4, 0.005813), 128: (1.551e-4, 0.006425)},
    ),
    Case(
        codec="kakeya",
        options={"block_size": 256, "bits": 2, "exact_rows": 8},
        bits=lambda n, d: kakeya_bits(n, d, 2, d) + 8 * (16 * d + 8) / (n * d),
        errors={64: (0.002771, 0.06289), 128: (0.001846, 0.0672)},
    ),
    Case(
        codec="kakeya",
        options={"block_size": 256, "bits": 3, "centroids": "pooled", "basis": "shared", "rank": 0.5},
        bits=lambda n, d: kakeya_bits(n, d, 3, d // 2, own_basis=False),
        errors={64: (0.002241, 0.2372), 128: (9.984e-4, 0.2295)},
    ),
]

ALL = [pytest.param(case, d, id=f"{case}-{d}") for case in CASES for d in HEAD_DIMS]
ONE_EACH = [
    pytest.param(case, id=str(case))
    for case in CASES
    if str(case)
    in {
        "identity",
        "fp8",
        "int8",
        "int4",
        "int4-affine=True",
        "kivi-bits=2",
        "turboquant-bits=3",
        "turboquant-bits=3-qjl=True",
        "lattice-lattice=d4-scale_levels=4",
        "lattice-lattice=e8-scale_levels=10",
        "besicovitch-direction_bits=3-magnitude_bits=4",
        "besicovitch-direction_bits=6-magnitude=float16",
        "riemannian-direction_bits=3",
        "kakeya-bits=4-block_size=256",
    }
]

encode = jax.jit(lambda codec, block: codec.encode(block))
encode_blocks = jax.jit(lambda codec, blocks: jax.vmap(codec.encode)(blocks))
decode = jax.jit(lambda codec, code: codec.decode(code))
recode_blocks = jax.jit(round_trip)


@functools.cache
def blocks(kind: StreamName, n: int, d: int) -> jax.Array:
    return synthetic_kv(0, 4 * n, d, kind).reshape(4, n, d)


@functools.cache
def own_tables(config: CodecConfig, d: int, stream: StreamName) -> dict[str, Any]:
    return fit_own_tables(config, [np.asarray(blocks(stream, config.block_size, d))[:1, None]])[0]


def relative_error(codec: Codec, x: jax.Array) -> float:
    y = recode_blocks(codec, x)
    chex.assert_shape(y, x.shape)
    chex.assert_type(y, jnp.float32)
    return float(jnp.sum((y - x) ** 2) / jnp.sum(x**2))


def test_every_registered_codec_has_cases() -> None:
    # Codecs of all heads at once have blocks of another shape, and the same promises in test files of their own.
    names = {name for name in codec_names() if not codec_class(name).joint_heads}
    assert names == {case.codec for case in CASES}, "a new codec needs settings with pinned errors in CASES"
    assert {param.values[0].codec for param in ONE_EACH} == names  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("case", "d"), ALL)
def test_error_stays_below_its_pin(case: Case, d: int) -> None:
    for kind, pinned in zip(("key", "value"), case.errors[d], strict=True):
        measured = relative_error(case.build(d, stream=kind), blocks(kind, case.config.block_size, d))
        assert measured <= MARGIN * pinned, kind
        assert measured >= pinned / MARGIN, f"{kind}: better than its pin; pin the new number"


@pytest.mark.parametrize(("case", "d"), ALL)
def test_bytes_are_those_of_the_formula(case: Case, d: int) -> None:
    n = case.config.block_size
    code = jax.eval_shape(case.build(d).encode, jax.ShapeDtypeStruct((n, d), jnp.float32))
    assert 8 * nbytes(code) == pytest.approx(case.bits(n, d) * n * d, abs=0)
    assert 0 < payload_nbytes(code) <= nbytes(code)


@pytest.mark.parametrize("case", ONE_EACH)
def test_reported_bytes_are_held_bytes(case: Case) -> None:
    n = case.config.block_size
    code = encode(case.build(64), blocks("key", n, 64)[0])
    assert nbytes(code) == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(code))
    expected = jax.eval_shape(case.build(64).encode, blocks("key", n, 64)[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(code, expected)


@pytest.mark.parametrize(
    ("codec", "option", "values", "fixed"),
    [
        ("kivi", "bits", (2, 4), {}),
        ("kivi", "group_size", (128, 64, 32), {}),
        ("turboquant", "bits", (1, 2, 3, 4, 5, 6, 8), {}),
        ("turboquant", "bits", (2, 3, 4), {"qjl": True}),
        ("lattice", "scale_levels", (1, 4, 10, 152), {"lattice": "d4"}),
        ("lattice", "scale_levels", (1, 4, 10, 152), {"lattice": "e8"}),
        ("int8", "group_size", (64, 32), {}),
        ("besicovitch", "magnitude_bits", (1, 2, 3, 4), {}),
        ("besicovitch", "direction_bits", (1, 2, 3, 4, 6), {"magnitude": "float16"}),
        ("riemannian", "magnitude_bits", (1, 2, 3, 4), {}),
        ("riemannian", "direction_bits", (1, 2, 3, 4, 6, 8), {}),
        ("kakeya", "bits", (2, 4), {"block_size": 256}),
    ],
)
def test_more_bits_are_never_worse(codec: str, option: str, values: tuple, fixed: dict) -> None:
    errors = []
    for value in values:
        config = codec_config(codec, **fixed, **{option: value})
        built = config.build(128, stream="value", tables=own_tables(config, 128, "value"))
        errors.append(relative_error(built, blocks("value", config.block_size, 128)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("case", ONE_EACH)
def test_jit_gives_the_eager_codes(case: Case) -> None:
    x = blocks("value", case.config.block_size, 64)[0]
    codec = case.build(64, stream="value")
    assert_same_code(codec, encode(codec, x), codec.encode(x))


@pytest.mark.parametrize("case", ONE_EACH)
def test_vmap_gives_the_codes_of_a_loop(case: Case) -> None:
    x = blocks("key", case.config.block_size, 64)
    codec = case.build(64)
    together = encode_blocks(codec, x)
    for i, block in enumerate(x):
        assert_same_code(codec, jax.tree.map(lambda leaf, i=i: leaf[i], together), encode(codec, block))


@pytest.mark.parametrize("case", ONE_EACH)
def test_same_seeds_give_the_same_codes(case: Case) -> None:
    x = blocks("key", case.config.block_size, 64)[0]
    first, second = (encode(case.build(64, layer=3), x) for _ in range(2))
    chex.assert_trees_all_equal(first, second)


@pytest.mark.parametrize("case", ONE_EACH)
def test_other_layers_do_not_retrace(case: Case) -> None:
    chex.clear_trace_counter()
    traces = jax.jit(chex.assert_max_traces(lambda codec, block: codec.decode(codec.encode(block)), n=1))
    for layer in range(3):
        traces(case.build(64, layer=layer), blocks("key", case.config.block_size, 64)[layer])


@pytest.mark.parametrize("case", ONE_EACH)
def test_codes_under_strict_dtype_promotion(case: Case) -> None:
    with jax.numpy_dtype_promotion("strict"):
        codec = case.build(64)
        x = blocks("key", case.config.block_size, 64)[0]
        chex.assert_tree_all_finite(jax.jit(codec.decode)(jax.jit(codec.encode)(x)))


@pytest.mark.parametrize("case", ONE_EACH)
def test_broken_and_extreme_blocks(case: Case) -> None:
    if case.codec == "identity":
        pytest.skip("stores what it is given")
    n, d = case.config.block_size, 64
    ordinary = np.array(blocks("value", n, d)[0])
    zero = np.zeros((n, d), np.float32)
    constant = np.full((n, d), 3.0, np.float32)
    denormal = np.full((n, d), 1e-40, np.float32)
    huge = np.full((n, d), 1e30, np.float32) * np.sign(ordinary)
    one_huge, one_nan, one_inf, all_nan = (ordinary.copy() for _ in range(4))
    one_huge[5, 7], one_nan[5, 7], one_inf[5, 7] = 1e30, np.nan, -np.inf
    all_nan[:] = np.nan
    x = np.stack([zero, constant, denormal, huge, one_huge, one_nan, one_inf, all_nan])
    codec: Any = case.build(d, stream="value")
    y = np.asarray(recode_blocks(codec, jnp.asarray(x)))
    nearest_to_zero = 0.0
    if case.codec == "riemannian":  # fixed scales and no level at zero
        nearest_to_zero = float(jnp.max(codec.scales) * jnp.min(jnp.abs(codec.levels))) * (1 + 1e-6)

    assert np.isfinite(y).all()
    assert (np.abs(y[0]) <= nearest_to_zero).all()
    assert np.mean((y[1] - constant) ** 2) <= max(9 * 1.2 * max(case.errors[64]), nearest_to_zero**2)
    assert (np.abs(y[2]) <= nearest_to_zero + 1e-6).all()
    assert (np.abs(y[3]) < 2.0**16).all()
    assert (np.abs(y[7]) <= nearest_to_zero).all()
    if case.codec not in (
        "kakeya",
        "besicovitch",
        "riemannian",
    ):  # each value belongs to one token: the others keep their error
        others = np.arange(n) != 5
        for broken in y[4:7]:
            np.testing.assert_allclose(broken[others], recoded(case, ordinary)[others], atol=1e-5)


def test_identity_stores_what_it_is_given() -> None:
    x = jnp.array([[jnp.nan, jnp.inf, 1e30, 0.0]])
    y = round_trip(codec_config("identity").build(4), x)
    np.testing.assert_array_equal(y, x.astype(jnp.bfloat16).astype(jnp.float32))


def recoded(case: Case, block: np.ndarray) -> np.ndarray:
    return np.asarray(recode_blocks(case.build(block.shape[-1], stream="value"), jnp.asarray(block)[None])[0])


def assert_same_code(codec: Codec, first: Any, second: Any) -> None:
    """Equal codes; for codecs that fit their block only reconstructions that are equally good are
    comparable."""
    if codec.config.name == "kakeya":
        a, b = (decode(codec, code) for code in (first, second))
        assert float(jnp.mean((a - b) ** 2)) <= 1e-3 * float(jnp.mean(a**2))
        return
    chex.assert_trees_all_equal(first, second)

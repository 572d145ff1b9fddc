import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import bitpack, code_words, hadamard, lloyd_max, pca
from kakeya_jax.accounting import nbytes
from kakeya_jax.attention_weights import logit_energy
from kakeya_jax.codec import Codec
from kakeya_jax.codecs.fitting import blocks_of, fit_own_tables, needs_own_tables
from kakeya_jax.codecs.kakeya import Kakeya, KakeyaCode, KakeyaConfig, fit_shared
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.eval.numpy_codecs import kakeya as oracle
from kakeya_jax.testing import synthetic_kv

N, D = 512, 64
INDICES = ("codes", "segment", "outlier_index", "magnitudes", "exact_position")
FLOATS = ("projection", "norm", "centers", "outlier_value", "exact_value")
FIELDS = INDICES + FLOATS
decode = jax.jit(lambda codec, code: codec.decode(code))


def build(d: int = D, tables: Any = None, **options: Any) -> Kakeya:
    return KakeyaConfig(**options).build(d, tables=tables)


def error(codec: Kakeya, x: jax.Array) -> float:
    return relative_error(x, decode(codec, codec.encode(x)))


def relative_error(x: Any, y: Any) -> float:
    x = np.asarray(x)
    return float(np.sum((x - np.asarray(y)) ** 2) / np.sum((x - x.mean(axis=0)) ** 2))


def mismatches(a: Any, b: Any, names: tuple[str, ...] = FIELDS) -> int:
    """Entries that differ between two codes, over all fields that both must have."""
    return sum(int(np.sum(u != v)) for u, v in fields(a, b, names))


def fields(a: Any, b: Any, names: tuple[str, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(getattr(a, name, None), getattr(b, name, None)) for name in names]
    assert all((u is None) == (v is None) for u, v in pairs)
    return [(np.asarray(u), np.asarray(v)) for u, v in pairs if u is not None]


def test_is_registered() -> None:
    codec = codec_config("kakeya", bits=2).build(D)
    assert isinstance(codec, Kakeya)
    assert isinstance(codec, Codec)
    assert codec.config.rope == "pre"


# Relative squared errors about the column means, measured here; a change of more than 3 % is a change of the method.
PINNED = [
    ({"bits": 1}, 0.0742, 0.2440),
    ({"bits": 2}, 0.0229, 0.0765),
    ({"bits": 3}, 0.00681, 0.02234),
    ({"bits": 4}, 0.001908, 0.006222),
    ({"pca": "randomized"}, 0.01412, 0.1705),
    ({"pca": "randomized", "outlier_threshold": 2.0}, 0.01360, 0.1679),
    ({"outlier_threshold": 1.5}, 0.004448, 0.01370),
    ({"skeleton_dtype": "float32"}, 0.006796, 0.02234),
    ({"pca": "frequent_directions"}, 0.01432, 0.1705),
    ({"rank": 0.75}, 0.007373, 0.0676),
    ({"residual": "besicovitch"}, 0.006763, 0.02233),
    ({"residual": "besicovitch", "group_size": 4, "direction_bits": 8, "magnitude": "float16"}, 0.05118, 0.1572),
    ({"exact_rows": 4}, 0.006705, 0.02153),
    ({"weights": "attention", "whiten": True, "rank": 32}, 0.01431, 0.1798),
]


@pytest.mark.parametrize(("options", "keys", "values"), PINNED)
def test_errors_are_pinned(options: dict[str, Any], keys: float, values: float) -> None:
    codec = build(**options)
    assert error(codec, synthetic_kv(0, N, D, "key")) == pytest.approx(keys, rel=0.03)
    assert error(codec, synthetic_kv(0, N, D, "value")) == pytest.approx(values, rel=0.03)


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_gaussian_error_is_the_quantisers_share_of_the_residual(bits: int, distortion: float) -> None:
    """``distortion`` is that of the Lloyd-Max quantiser of N(0, 1); k-means takes its part before it."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((512, 128)).astype(np.float32))
    codec = build(128, bits=bits)
    code = codec.encode(x)
    residual_share = jnp.sum(jnp.square(code.norm.astype(jnp.float32))) / jnp.sum(jnp.square(x - jnp.mean(x, axis=0)))
    assert residual_share == pytest.approx(0.906, abs=0.01)
    assert relative_error(x, decode(codec, code)) == pytest.approx(distortion * float(residual_share), rel=0.03)


def test_stored_norm_gives_the_least_error() -> None:
    codec, x = build(bits=2), synthetic_kv(1, N, D, "value")
    code = codec.encode(x)

    def scaled(factor: float) -> float:
        norm = code.norm * jnp.float16(factor)
        return relative_error(x, decode(codec, dataclasses.replace(code, norm=norm)))

    assert scaled(1.0) < min(scaled(0.8), scaled(1.2))
    unit = dataclasses.replace(code, norm=jnp.ones_like(code.norm))  # the reference's inner-product decode
    assert relative_error(x, decode(codec, unit)) > 3 * scaled(1.0)


@pytest.mark.parametrize("kind", ["key", "value"])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"bits": 2, "kmeans_centers": 5, "rank": 48, "skeleton_dtype": "float32"},
        {"bits": 3, "pca": "randomized", "outlier_threshold": 2.0},
        {"bits": 3, "variance_ratio": 0.9},
        {"bits": 1, "kmeans_centers": 1, "seed": 3},
    ],
    ids=str,
)
def test_agrees_with_numpy(kind: Any, options: dict[str, Any]) -> None:
    config, x = KakeyaConfig(**options), synthetic_kv(2, 256, D, kind)
    codec = config.build(D)
    code = codec.encode(x)
    retained = codec.rank
    if config.variance_ratio < 1:
        retained = int(pca.effective_rank(pca.exact_pca(x, D).variances, config.variance_ratio))
        assert retained < D
    skeleton = oracle.Skeleton(np.asarray(code.mean), np.asarray(code.basis), retained)
    expected = oracle.encode_block(np.asarray(x), config, skeleton)
    indices = code_words.unpack(code.codes, config.bits, len(codec.signs))
    in_order = dataclasses.replace(code, codes=bitpack.pack(indices, config.bits))  # as numpy packs them
    assert mismatches(in_order, expected, INDICES) <= 2  # ties
    for side, other in fields(code, expected, FLOATS):  # one unit in the last place of float16
        np.testing.assert_allclose(side.astype(np.float32), other.astype(np.float32), rtol=2**-10, atol=2**-20)
    ours = decode(codec, code)
    np.testing.assert_allclose(
        relative_error(x, ours), relative_error(x, oracle.decode_block(expected, config)), rtol=1e-4
    )
    own = oracle.encode_block(np.asarray(x), config)
    assert relative_error(x, oracle.decode_block(own, config)) == pytest.approx(relative_error(x, ours), rel=0.06)


def test_numpy_baseline_codes_consecutive_blocks() -> None:
    config, x = KakeyaConfig(block_size=128), synthetic_kv(3, 300, 32, "value")
    codes = oracle.encode(np.asarray(x), config)
    assert len(codes) == 2
    assert relative_error(x[:256], oracle.decode(codes, config)) < 0.04


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"pca": "randomized", "outlier_threshold": 2.0},
        {
            "pca": "frequent_directions",
            "residual": "besicovitch",
            "exact_rows": 3,
            "weights": "attention",
            "whiten": True,
        },
    ],
    ids=str,
)
def test_a_code_does_not_depend_on_how_blocks_are_batched(options: dict[str, Any]) -> None:
    codec = build(**options)
    blocks = jnp.stack([synthetic_kv(i, 256, D, kind) for i in range(2) for kind in ("key", "value")])
    eager = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[codec.encode(block) for block in blocks])
    jitted = jax.jit(codec.encode)
    pairs = jax.jit(jax.vmap(jax.vmap(codec.encode)))(blocks.reshape(2, 2, 256, D))
    assert mismatches(jax.tree.map(lambda leaf: leaf[1], eager), jitted(blocks[1])) == 0
    if jax.default_backend() == "cpu":
        assert mismatches(eager, jax.vmap(codec.encode)(blocks)) == 0
        assert mismatches(eager, jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[2:]), pairs)) == 0


def test_seed_fixes_the_code() -> None:
    x = synthetic_kv(4, 128, D, "value")
    code = build(seed=1).encode(x)
    assert mismatches(code, build(seed=1).encode(x)) == 0
    assert mismatches(code, build(seed=2).encode(x)) > 1000


def test_more_bits_are_never_worse() -> None:
    x = synthetic_kv(5, 256, D, "key")
    errors = [error(build(bits=bits, pca="randomized", rank=48), x) for bits in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


def test_more_outlier_slots_are_never_worse() -> None:
    x = synthetic_kv(5, 256, D, "value")
    errors = [error(build(bits=2), x)]
    errors += [error(build(bits=2, outlier_threshold=1.5, outlier_slots=m), x) for m in (1, 4, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_stored_arrays_are_tight() -> None:
    n, d, rank, padded, k, slots = 512, 128, 48, 64, 16, 5
    codec = build(d, bits=3, rank=rank, outlier_threshold=2.0)
    code = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((n, d), jnp.float32))
    assert isinstance(code, KakeyaCode)
    sizes = {name: leaf.size * leaf.dtype.itemsize for name, leaf in vars(code).items() if leaf is not None}
    assert sizes == {
        "codes": n * padded * 3 // 8,
        "segment": n * 4 // 8,
        "projection": 2 * n,
        "norm": 2 * n,
        "centers": 2 * k * rank,
        "mean": 2 * d,
        "basis": 2 * rank * d,
        "outlier_index": n * 4,  # 5 positions of 6 bits
        "outlier_value": 2 * n * slots,
    }


def test_one_centre_needs_no_segment_bytes() -> None:
    codec, x = build(kmeans_centers=1), synthetic_kv(6, 64, D, "value")
    code = codec.encode(x)
    assert code.segment is not None
    assert code.segment.shape == (0,)
    assert error(codec, x) < 0.04


def test_without_centres_all_coefficients_are_quantised() -> None:
    x = synthetic_kv(6, 64, D, "value")
    codec, one = build(kmeans_centers=0), build(kmeans_centers=1)
    code, with_one = codec.encode(x), one.encode(x)
    assert (code.segment, code.projection, code.centers) == (None, None, None)
    assert nbytes(code) == nbytes(with_one) - 2 * 64 - 2 * D  # no projections, no centre
    assert error(build(), x) < error(codec, x)
    assert 0.025 < error(codec, x) < 0.035  # 0.0345 is that of eight levels and a Gaussian
    z = np.asarray(codec.standard_residual(x))
    np.testing.assert_allclose((z**2).mean(axis=1), 1.0, rtol=1e-4)
    assert np.var(z, axis=0).min() > 0.05  # rotated: no coordinate is left without its share


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3},
        {"pca": "randomized", "outlier_threshold": 1.5},
        {"pca": "frequent_directions", "residual": "besicovitch", "exact_rows": 2},
        {"weights": "attention", "whiten": True},
        {"kmeans_centers": 0, "residual": "besicovitch"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "block",
    [
        np.zeros((64, 32)),
        np.full((64, 32), 7.3),
        np.full((64, 32), 1e30),
        np.random.default_rng(0).standard_normal((64, 32)) * 1e30,
        np.full((64, 32), 1e-40),
        np.where(np.eye(64, 32), np.nan, 1.0),
        np.where(np.eye(64, 32), -np.inf, 1.0),
        np.eye(64, 32)[::-1] * 3.0,
    ],
    ids=["zero", "constant", "huge", "huge random", "denormal", "nan", "infinite", "sparse"],
)
def test_decodes_are_finite(options: dict[str, Any], block: np.ndarray) -> None:
    codec = build(32, **options)
    decoded = decode(codec, codec.encode(jnp.asarray(block.astype(np.float32))))
    assert np.all(np.isfinite(decoded))
    if np.ptp(block) == 0 and block[0, 0] < 100:
        np.testing.assert_allclose(decoded, block, rtol=1e-3, atol=1e-6)


def test_variance_ratio_drops_trailing_coefficients() -> None:
    x = synthetic_kv(7, N, D, "key")
    kept = error(build(bits=4, variance_ratio=0.9), x)
    assert 0.05 < kept < 0.11  # at most a tenth is dropped
    assert kept > 10 * error(build(bits=4), x)


def test_shared_basis_takes_the_place_of_the_blocks_own() -> None:
    x = synthetic_kv(8, 1024, D, "value")
    tables = fit_shared(x, rank=48)
    codec = build(tables=tables, basis="shared", rank=48, bits=4)
    code = codec.encode(x[:256])
    assert code.mean is None
    assert code.basis is None
    own = error(build(rank=48, bits=4), x[:256])
    assert own < error(codec, x[:256]) < 2 * own


def test_calibrated_levels_are_used_and_help() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray((rng.integers(-1, 2, (256, 16)) * 4 + 0.05 * rng.standard_normal((256, 16))).astype(np.float32))
    plain = build(16, bits=2)
    same = build(16, bits=2, centroids="calibrated", tables={"centroids": plain.levels})
    assert mismatches(plain.encode(x), same.encode(x)) == 0
    levels = lloyd_max.fit_levels(jax.jit(plain.standard_residual)(x), 2)
    fitted = build(16, bits=2, centroids="calibrated", tables={"centroids": levels})
    assert error(fitted, x) < 0.999 * error(plain, x)


def test_pooled_levels_are_one_table_for_all_layers() -> None:
    layers = [np.asarray(synthetic_kv(seed, 128, 16, "key")).reshape(1, 1, 128, 16) for seed in range(2)]
    options: dict[str, Any] = {"block_size": 64, "bits": 2, "rank": 8, "kmeans_centers": 4}
    pooled = fit_own_tables(KakeyaConfig(centroids="pooled", **options), layers)
    alone = fit_own_tables(KakeyaConfig(centroids="calibrated", basis="shared", **options), layers)
    np.testing.assert_array_equal(pooled[0]["centroids"], pooled[1]["centroids"])
    assert set(pooled[0]) == {"centroids"}
    assert set(alone[0]) == {"centroids", "mean", "basis"}
    assert not np.array_equal(alone[0]["centroids"], alone[1]["centroids"])
    config = KakeyaConfig(**options)
    assert not needs_own_tables(config)
    assert fit_own_tables(config, layers) == [{}, {}]
    z = np.concatenate([_standard_residuals(config, each).ravel() for each in layers])
    np.testing.assert_allclose(pooled[0]["centroids"], lloyd_max.fit_levels(z, 2), atol=1e-4)


def _standard_residuals(config: KakeyaConfig, vectors: np.ndarray) -> np.ndarray:
    codec = config.build(vectors.shape[-1])
    return np.stack([np.asarray(jax.jit(codec.standard_residual)(block)) for block in blocks_of(config, vectors)])


def test_blocks_for_fitting_are_those_of_the_cache() -> None:
    vectors = np.arange(2 * 3 * 10 * 4).reshape(2, 3, 10, 4)
    apart = blocks_of(KakeyaConfig(block_size=4), vectors)
    np.testing.assert_array_equal(apart[0], vectors[0, 0, :4])
    np.testing.assert_array_equal(apart[1], vectors[0, 0, 4:8])
    assert apart.shape == (12, 4, 4)
    mixed = blocks_of(KakeyaConfig(block_size=4, mix_heads=True), vectors)
    np.testing.assert_array_equal(
        mixed[0, :4], [vectors[0, 0, 0], vectors[0, 1, 0], vectors[0, 2, 0], vectors[0, 0, 1]]
    )
    assert mixed.shape == (4, 12, 4)


def test_attention_weights_move_the_error_to_keys_that_matter_less() -> None:
    x = synthetic_kv(0, N, D, "key")
    moment = jnp.diag(jnp.linspace(0.1, 2.0, D) ** 2)
    weights = logit_energy(x, moment)

    def weighted_error(codec: Kakeya) -> float:
        return float(jnp.sum(weights[:, None] * jnp.square(x - decode(codec, codec.encode(x)))))

    options: dict[str, Any] = {"bits": 4, "rank": 24, "kmeans_centers": 1}
    weighted = build(weights="attention", tables={"query_second_moment": moment}, **options)
    assert weighted_error(weighted) < 0.98 * weighted_error(build(**options))
    assert error(weighted, x) > error(build(**options), x)
    same = jax.eval_shape(build(**options).encode, x)
    assert jax.eval_shape(weighted.encode, x) == same  # nothing more is stored


def test_exact_rows_are_exact_and_leave_the_others_alone() -> None:
    """Vectors far from all others: kept exact, they no longer take components from the rest."""
    x = synthetic_kv(0, N, D, "value").at[jnp.array([0, 300])].mul(200.0)
    options: dict[str, Any] = {"pca": "randomized", "rank": 4, "bits": 4, "kmeans_centers": 1}
    plain, kept = build(**options), build(exact_rows=2, **options)
    y = decode(kept, code := kept.encode(x))
    np.testing.assert_array_equal(y[jnp.array([0, 300])], x[jnp.array([0, 300])].astype(jnp.float16))
    assert nbytes(code) - nbytes(plain.encode(x)) == 2 * 2 * D + 3  # two vectors, two indices of 9 bits
    rest = np.delete(np.arange(N), [0, 300])
    others = relative_error(x[rest], y[rest])
    assert others < 0.95 * relative_error(x[rest], decode(plain, plain.encode(x))[rest])
    alone = build(block_size=N - 2, **options)
    assert others == pytest.approx(error(alone, x[rest]), rel=0.05)


def test_groups_of_the_residual_cost_what_they_say() -> None:
    """Pairs of 3 + 3 bits are 3 bits a value, like three-bit levels, and about as good; float16 magnitudes are 11."""
    x = jax.ShapeDtypeStruct((N, D), jnp.float32)
    pairs = build(residual="besicovitch")
    assert nbytes(jax.eval_shape(pairs.encode, x)) == nbytes(jax.eval_shape(build(bits=3).encode, x))
    exact = build(residual="besicovitch", direction_bits=6, magnitude="float16")
    assert nbytes(jax.eval_shape(exact.encode, x)) - nbytes(jax.eval_shape(pairs.encode, x)) == N * D * (11 - 3) // 8
    keys = synthetic_kv(0, N, D, "key")
    assert error(exact, keys) < 0.1 * error(pairs, keys)


def test_needed_tables_follow_from_the_options() -> None:
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({}, ()),
        ({"basis": "shared"}, ("mean", "basis")),
        ({"centroids": "pooled", "whiten": True}, ("whitening", "unwhitening", "centroids")),
        ({"weights": "attention"}, ("query_second_moment",)),
        ({"weights": "attention", "whiten": True}, ("whitening", "unwhitening")),
    ]
    for options, names in cases:
        config = KakeyaConfig(**options)
        assert config.needs_tables() == names
        neutral = config.neutral_tables(D, num_kv_heads=2)
        assert set(names) == set(neutral)
        config.build(D, tables=neutral)


def test_standard_residual_has_unit_mean_square() -> None:
    z = jax.jit(build(rank=48).standard_residual)(synthetic_kv(9, 128, D, "key"))
    assert z.shape == (128, hadamard.next_power_of_two(48))
    np.testing.assert_allclose(jnp.mean(z * z, axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits=5 must be between 1 and 4"),
        ({"rank": 0}, "rank=0 must be a whole number of at least 1, or a share below 1"),
        ({"rank": 1.5}, "rank=1.5 must be a whole number"),
        ({"direction_bits": 9}, "direction_bits=9 must be between 1 and 8"),
        ({"exact_rows": 512}, "exact_rows=512 must be between 0 and 511"),
        ({"residual": "besicovitch", "centroids": "pooled"}, "takes no outliers and no centroids"),
        ({"residual": "besicovitch", "outlier_threshold": 2.0}, "takes no outliers and no centroids"),
        ({"pca": "fast"}, "pca='fast' must be one of"),
        ({"variance_ratio": 1.5}, "variance_ratio=1.5"),
        ({"basis": "shared", "variance_ratio": 0.5}, "use rank instead"),
        ({"outlier_threshold": 0.0}, "at least 0.1"),
        ({"outlier_threshold": float("nan")}, "at least 0.1"),
        ({"outlier_slots": 3}, "needs an outlier_threshold"),
        ({"kmeans_centers": -1}, "kmeans_centers=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KakeyaConfig(**options)


@pytest.mark.parametrize(
    ("options", "tables", "message"),
    [
        ({"rank": 65}, {}, "rank=65 must be at most head_dim=64"),
        ({"basis": "shared"}, {}, "needs the table 'mean'; fit it with `kakeya calibrate MODEL --recipe RECIPE`"),
        ({"basis": "shared"}, {"mean": jnp.zeros(3)}, r"shape \(3,\), needs \(64,\)"),
        (
            {"centroids": "calibrated"},
            {},
            "needs the table 'centroids'; fit it with `kakeya calibrate MODEL --recipe RECIPE`",
        ),
        ({"centroids": "calibrated", "bits": 1}, {"centroids": jnp.zeros(2)}, "must ascend strictly"),
        ({"weights": "attention"}, {}, "needs the table 'query_second_moment'; it is the mean outer product"),
        ({"residual": "besicovitch", "group_size": 3}, {}, "group_size=3 must divide the padded rank of 64"),
    ],
)
def test_bad_tables_are_refused(options: dict[str, Any], tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KakeyaConfig(**options).build(D, tables=tables)


def test_values_cannot_be_weighted_by_attention() -> None:
    with pytest.raises(ValueError, match="weights='attention' is for keys"):
        KakeyaConfig(weights="attention", whiten=True).build(D, stream="value")


def test_numpy_has_no_answer_to_the_newer_options() -> None:
    with pytest.raises(ValueError, match="no numpy baseline of kakeya with exact_rows=2"):
        oracle.encode_block(np.zeros((8, 4), np.float32), KakeyaConfig(exact_rows=2))


def test_fit_shared_checks_its_input() -> None:
    with pytest.raises(ValueError, match="rank=9 must be between 1 and the vectors' dimension 8"):
        fit_shared(jnp.zeros((10, 8)), rank=9)
    with pytest.raises(ValueError, match="non-finite"):
        fit_shared(jnp.full((10, 8), jnp.nan))

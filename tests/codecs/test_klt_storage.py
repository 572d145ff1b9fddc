"""What every codec promises, for the one whose block is a whole layer: ``[2 K, n, D]``."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import fitted_nbytes, nbytes, payload_nbytes, side_nbytes
from kakeya_jax.calibration.storage_counts import calibrate_storage
from kakeya_jax.calibration.storage_fit import LayerMoments
from kakeya_jax.codecs.klt_storage import PAGE_MEAN_STEP, KltStorage, KltStorageConfig
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.testing import synthetic_kv

K, N, D = 2, 128, 64
C = 2 * K * D
PAGES = 12
MARGIN = 1.03

encode = jax.jit(lambda codec, block: codec.encode(block))
decode = jax.jit(lambda codec, code: codec.decode(code))
recode = jax.jit(lambda codec, blocks: jax.vmap(lambda block: codec.decode(codec.encode(block)))(blocks))


@functools.cache
def vectors() -> np.ndarray:
    """``[2 K, PAGES * N, D]``: synthetic keys and values."""
    heads = [synthetic_kv(head, PAGES * N, D, kind) for kind in ("key", "value") for head in range(K)]
    return np.stack([np.asarray(head) for head in heads])


@functools.cache
def blocks() -> np.ndarray:
    return vectors().reshape(2 * K, PAGES, N, D).transpose(1, 0, 2, 3)


@functools.cache
def codec(bits: float = 2.0, page_mean: bool = True) -> KltStorage:
    """Fitted to plain squared error on the blocks themselves, so errors are pinned, not predicted."""
    flat = vectors().transpose(1, 0, 2).reshape(-1, C)
    mean = flat.mean(axis=0).reshape(2 * K, D)
    identity = np.broadcast_to(np.eye(D), (K, D, D))
    moments = LayerMoments(
        mean_key=mean[:K],
        mean_value=mean[K:],
        covariance=np.cov(flat.T, bias=True),
        fisher_key=identity,
        fisher_value=identity,
    )
    config = KltStorageConfig(bits=bits, page_mean=page_mean)
    (tables,) = calibrate_storage(config, [moments], [blocks()])
    return config.build(D, tables={name: jnp.asarray(table) for name, table in tables.items()})


def errors(of: KltStorage) -> tuple[float, float]:
    """Relative squared error of keys and of values."""
    x, y = blocks(), np.asarray(recode(of, jnp.asarray(blocks())))
    chex.assert_shape(y, x.shape)
    parts = [(slice(0, K)), (slice(K, 2 * K))]
    return tuple(float(np.sum((y[:, p] - x[:, p]) ** 2) / np.sum(x[:, p] ** 2)) for p in parts)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("bits", "page_mean", "key", "value"),
    [
        (0.5, True, 0.01489, 0.2903),
        (1, True, 0.006225, 0.09728),
        (2, True, 0.001719, 0.01507),
        (4, True, 1.258e-4, 7.942e-4),
        (2, False, 0.001707, 0.01596),
    ],
)
def test_error_stays_below_its_pin(bits: float, page_mean: bool, key: float, value: float) -> None:
    for measured, pinned in zip(errors(codec(bits, page_mean)), (key, value), strict=True):
        assert measured <= MARGIN * pinned
        assert measured >= pinned / MARGIN, "better than its pin; pin the new number"


def test_bytes_are_those_of_the_shapes() -> None:
    for bits in (1, 4):
        held = codec(bits)
        kept, fine = held.steps.shape[0], held.low_bits.shape[0]
        code = encode(held, jnp.asarray(blocks()[0]))
        assert payload_nbytes(code) == N * (kept + fine)
        assert side_nbytes(code) == C
        assert nbytes(code) == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(code))
        expected = jax.eval_shape(held.encode, jax.ShapeDtypeStruct((2 * K, N, D), jnp.float32))
        chex.assert_trees_all_equal_shapes_and_dtypes(code, expected)
        assert fitted_nbytes(held) == nbytes(held)
        chex.assert_type(decode(held, code), jnp.float32)


def test_very_fine_channels_have_two_parts() -> None:
    held = codec(4)
    fine = held.low_bits.shape[0]
    assert 0 < fine < held.steps.shape[0]
    assert (np.diff(np.asarray(held.steps)) >= 0).all()
    coarse = np.asarray(held.steps[:fine]) * 2.0 ** np.asarray(held.low_bits, float)
    assert (coarse >= 0.9999 / 16).all()
    assert (coarse < 2 / 16).all()
    code = encode(held, jnp.asarray(blocks()[0]))
    low, bits = np.asarray(code.low, int), np.asarray(held.low_bits, int)
    np.testing.assert_array_equal(low.min(axis=0), -(2 ** (bits - 1)))
    np.testing.assert_array_equal(low.max(axis=0), 2 ** (bits - 1) - 1)
    z = (blocks()[0].transpose(1, 0, 2).reshape(N, C) - np.asarray(held.mean)) @ np.asarray(held.analysis)
    z -= np.asarray(code.page_mean, np.float32) * PAGE_MEAN_STEP
    multiples = np.asarray(code.symbols, int)[:, :fine] * 2**bits + low
    np.testing.assert_allclose(
        multiples * np.asarray(held.steps[:fine]), z[:, :fine], atol=0.51 * float(held.steps[fine - 1])
    )


def test_jit_gives_the_eager_codes_and_vmap_those_of_a_loop() -> None:
    held, some = codec(), jnp.asarray(blocks()[:3])
    together = jax.jit(jax.vmap(lambda block: held.encode(block)))(some)
    for i, block in enumerate(some):
        code = encode(held, block)
        chex.assert_trees_all_equal(held.encode(block), code)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=i: leaf[i], together), code)


def test_other_tables_of_the_same_shape_do_not_retrace() -> None:
    chex.clear_trace_counter()
    traces = jax.jit(chex.assert_max_traces(lambda codec, block: codec.decode(codec.encode(block)), n=1))
    config = KltStorageConfig()
    tables = config.neutral_tables(D, num_kv_heads=K)
    for layer in range(3):
        held = config.build(D, layer=layer, tables={**tables, "mean": tables["mean"] + layer})
        traces(held, jnp.asarray(blocks()[layer]))


def test_codes_under_strict_dtype_promotion() -> None:
    with jax.numpy_dtype_promotion("strict"):
        held = codec()
        chex.assert_tree_all_finite(jax.jit(held.decode)(jax.jit(held.encode)(jnp.asarray(blocks()[0]))))


def test_broken_and_extreme_blocks() -> None:
    held = codec()
    ordinary = blocks()[0]
    huge = np.full_like(ordinary, 1e30) * np.sign(ordinary)
    one_huge, one_nan, one_inf, all_nan = (ordinary.copy() for _ in range(4))
    one_huge[1, 5, 7], one_nan[1, 5, 7], one_inf[1, 5, 7] = 1e30, np.nan, -np.inf
    all_nan[:] = np.nan
    zero = np.zeros_like(ordinary)
    x = np.stack([zero, zero + 3, zero + 1e-40, huge, all_nan, one_huge, one_nan, one_inf, ordinary])
    y = np.asarray(recode(held, jnp.asarray(x)))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[4], y[0])
    np.testing.assert_array_equal(y[2], y[0])
    # Zeros are far from the mean of keys: coded like any vector.
    assert np.sqrt(np.mean(y[0] ** 2)) < 0.25 * np.sqrt(np.mean(ordinary**2))
    others = np.arange(N) != 5
    usual = np.mean((y[8] - ordinary)[:, others] ** 2)
    for broken in y[5:8]:
        assert np.mean((broken - ordinary)[:, others] ** 2) < 1.1 * usual


def test_a_page_mean_is_robust_and_bounded() -> None:
    held = KltStorageConfig().build(D, tables=KltStorageConfig().neutral_tables(D, num_kv_heads=K))
    block = np.zeros((2 * K, N, D), np.float32)
    block[0, 3, 0] = 1e9
    block[0, :, 1] = 2.06
    block[0, :, 2] = 1e9
    page_mean = np.asarray(encode(held, jnp.asarray(block)).page_mean)
    # One token of 128 at 8 deviations is a quarter of a step; 2.06 deviations are 8.2 steps; 8 deviations are the most.
    assert list(page_mean[:4]) == [0, 8, 32, 0]


def test_dropped_channels_come_back_as_the_mean() -> None:
    held = codec(0.5, page_mean=False)
    kept = held.steps.shape[0]
    assert 0 < kept < C
    y = np.asarray(decode(held, encode(held, jnp.asarray(blocks()[0]))))
    flat = y.transpose(1, 0, 2).reshape(N, C) - np.asarray(held.mean)
    coordinates = flat @ np.asarray(held.analysis)
    np.testing.assert_allclose(coordinates[:, kept:], 0.0, atol=1e-3)
    assert np.abs(coordinates[:, :kept]).max() > 1


def test_nothing_kept_is_the_mean() -> None:
    config = KltStorageConfig(page_mean=False)
    tables = config.neutral_tables(D, num_kv_heads=K)
    none = {name: tables[name][:0] for name in ("steps", "gains", "low_bits", "frequencies")}
    held = config.build(D, tables={**tables, **none, "mean": tables["mean"] + 2.0})
    code = encode(held, jnp.asarray(blocks()[0]))
    assert code.page_mean is None
    assert nbytes(code) == 0
    np.testing.assert_array_equal(decode(held, code), 2.0)


def test_missing_and_wrong_tables_are_refused() -> None:
    config = codec_config("klt-storage", bits=1.5)
    tables = config.neutral_tables(D, num_kv_heads=K)
    assert set(tables) == set(config.needs_tables())
    with pytest.raises(ValueError, match="layer 3: needs the table 'mean'"):
        config.build(D, layer=3)
    without = {name: table for name, table in tables.items() if name != "page_mean_frequencies"}
    with pytest.raises(ValueError, match="'page_mean_frequencies'"):
        config.build(D, tables=without)
    KltStorageConfig(bits=1.5, page_mean=False).build(D, tables=without)
    with pytest.raises(ValueError, match="layer 0: table 'gains' has shape"):
        config.build(D, tables={**tables, "gains": tables["gains"][1:]})
    with pytest.raises(ValueError, match="not for heads of 96"):
        config.build(96, tables=tables)
    with pytest.raises(ValueError, match="cannot code 6 heads of 64"):
        config.build(D, tables=tables).encode(jnp.zeros((6, N, D)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0.01}, "between 0.05 and 6"),
        ({"bits": "two"}, "must be a number"),
        ({"block_size": 0}, "at least 1"),
        ({"mix_heads": True}, "takes no mix_heads"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec_config("klt-storage", **options)

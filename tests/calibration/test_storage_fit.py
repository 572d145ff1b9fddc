"""The fit of ``klt-storage`` against what its formulas promise, on vectors of known moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.calibration.fisher_root import FISHER_RIDGE
from kakeya_jax.calibration.storage_counts import (
    add_counts,
    calibrate_storage,
    coded_bits,
    count_symbols,
    joint_blocks,
    refine,
)
from kakeya_jax.calibration.storage_fit import LayerMoments, LayerTables, fit_storage, joint_coordinates
from kakeya_jax.codecs.klt_storage import KltStorage, KltStorageConfig
from kakeya_jax.storage_pages import PageCoder
from kakeya_jax.uniform_quantizer import gaussian_statistics

K, D, N = 2, 16, 32
C = 2 * K * D


def moments(seed: int, scale: float = 1.0) -> LayerMoments:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((C, C)))[0]
    roots = rng.standard_normal((2, K, D, D))
    fisher_key, fisher_value = 1e-3 * scale * roots @ roots.transpose(0, 1, 3, 2) / D
    return LayerMoments(
        mean_key=2 * rng.standard_normal((K, D)),
        mean_value=rng.standard_normal((K, D)),
        covariance=(axes * np.arange(1, C + 1) ** -1.5) @ axes.T,
        fisher_key=fisher_key,
        fisher_value=fisher_value,
    )


def sample(layer: LayerMoments, pages: int, seed: int) -> np.ndarray:
    """Blocks ``[pages, 2 K, N, D]`` of Gaussian vectors with these moments."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((pages * N, C)) @ np.linalg.cholesky(layer.covariance).T
    heads = x.reshape(pages * N, 2 * K, D) + np.concatenate([layer.mean_key, layer.mean_value])
    key, value = np.split(heads.transpose(1, 0, 2).astype(np.float32), 2)
    return joint_blocks(key, value, N)


def build(config: KltStorageConfig, tables: LayerTables) -> KltStorage:
    return config.build(D, tables={name: jnp.asarray(table) for name, table in tables.items()})


def decoded(codec: KltStorage, blocks: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda block: codec.decode(codec.encode(block))))(jnp.asarray(blocks)))


LAYERS = [moments(0), moments(1, scale=30.0)]


def test_coordinates_are_uncorrelated_in_the_metric_of_the_loss():
    layer = LAYERS[0]
    found = joint_coordinates(layer)
    np.testing.assert_allclose(found.forward @ found.backward, np.eye(C), atol=1e-9)
    np.testing.assert_allclose(
        found.forward.T @ layer.covariance @ found.forward, np.diag(found.variances), atol=1e-9 * found.variances[0]
    )
    fisher = np.zeros((C, C))
    for head, matrix in enumerate(np.concatenate([layer.fisher_key, layer.fisher_value])):
        part = slice(head * D, (head + 1) * D)
        fisher[part, part] = matrix * (1 + FISHER_RIDGE * np.eye(D))
    np.testing.assert_allclose(found.backward @ fisher @ found.backward.T, np.eye(C), atol=1e-8)
    assert (np.diff(found.variances) <= 0).all()
    np.testing.assert_allclose(found.mean[: K * D].reshape(K, D), layer.mean_key)
    assert 0 <= found.key_share.min() < 0.3 < 0.7 < found.key_share.max() <= 1


@pytest.mark.parametrize("factor", [128.0, 1 / 128])
def test_scaled_channels_that_are_read_scaled_back_give_the_same_symbols(factor: float):
    """Any model can be rewritten so, in pairs of channels that rotate together; real ones have outliers like these."""
    layer = LAYERS[0]
    scale = np.where(np.arange(D // 2) % 4 == 1, factor, 1.0)
    scale = np.concatenate([scale, scale])
    all_heads = np.tile(scale, 2 * K)
    scaled = LayerMoments(
        mean_key=layer.mean_key * scale,
        mean_value=layer.mean_value * scale,
        covariance=layer.covariance * all_heads * all_heads[:, None],
        fisher_key=layer.fisher_key / scale / scale[:, None],
        fisher_value=layer.fisher_value / scale / scale[:, None],
    )
    config = KltStorageConfig(bits=1.0, block_size=N)
    tables = [fit_storage(config, [each])[0] for each in (layer, scaled)]
    np.testing.assert_array_equal(tables[0]["steps"], tables[1]["steps"])
    # An eigenvector may point either way.
    signs = np.sign(np.sum(tables[0]["analysis"] * tables[1]["analysis"] * all_heads[:, None], axis=0))
    block = sample(layer, 1, 0)[0]
    codes = [
        build(config, table).encode(jnp.asarray(vectors))
        for table, vectors in zip(tables, (block, block * scale.astype(np.float32)), strict=True)
    ]
    kept = len(tables[0]["steps"])
    same = np.asarray(codes[0].symbols) == np.asarray(codes[1].symbols) * signs[:kept]
    assert same.mean() > 0.999
    assert np.std(np.asarray(codes[0].symbols, float)) > 0.5


@pytest.mark.parametrize("bits", [0.3, 1.0, 3.0])
def test_one_budget_for_all_layers(bits: float):
    tables = fit_storage(KltStorageConfig(bits=bits, block_size=N), LAYERS)
    spent = [gaussian_statistics(table["steps"].astype(float)).bits.sum() / C for table in tables]
    assert bits - 0.02 < np.mean(spent) <= bits
    assert spent[1] > spent[0] + 0.3  # the layer whose errors cost 30 times as much
    for table in tables:
        assert (np.diff(table["steps"]) >= 0).all()
        codec = build(KltStorageConfig(bits=bits, block_size=N), table)
        assert (np.asarray(codec.frequencies, int).sum(axis=1) == 4096).all()


def test_no_other_steps_cost_less():
    """At equal slope no channel gains by another step: moving one bit from any channel to any other costs loss."""
    config = KltStorageConfig(bits=1.0, block_size=N, page_mean=False)
    layer = LAYERS[0]
    (table,) = fit_storage(config, [layer])
    coordinates = joint_coordinates(layer)
    z = np.asarray(table["analysis"], np.float64).T @ layer.covariance @ table["analysis"]
    np.testing.assert_allclose(np.diag(z), 1.0, atol=1e-4)
    kept = len(table["steps"])
    # Channels are found again by their direction, to know what each is worth.
    match = np.abs(coordinates.backward @ table["analysis"])
    order = match.argmax(axis=0)
    assert sorted(order) == list(range(C))
    variance, share = coordinates.variances[order], coordinates.key_share[order]
    kappa = 3 * share + 10 * (1 - share)

    def loss(steps: np.ndarray, which: np.ndarray) -> np.ndarray:
        held = gaussian_statistics(steps)
        return variance[which] * (held.independent + kappa[which] * held.coherent)

    steps = table["steps"].astype(float)
    of_kept = np.arange(kept)
    saved = (loss(steps * 1.2, of_kept) - loss(steps, of_kept)) / (
        gaussian_statistics(steps).bits - gaussian_statistics(steps * 1.2).bits
    )
    gained = (loss(steps, of_kept) - loss(steps / 1.2, of_kept)) / (
        gaussian_statistics(steps / 1.2).bits - gaussian_statistics(steps).bits
    )
    inner = (steps < 2.4) & (steps > 0.01)
    assert inner.sum() > 10
    assert gained[inner].max() < saved[inner].min()


def test_counts_make_the_frequencies_and_the_promised_rate_is_that_of_the_pages():
    config = KltStorageConfig(bits=1.0, block_size=N)
    blocks = [sample(layer, 60, seed) for seed, layer in enumerate(LAYERS)]
    tables = fit_storage(config, LAYERS)
    codecs = [build(config, table) for table in tables]
    halves = [[count_symbols(codec, block[part]) for codec, block in zip(codecs, blocks, strict=True)]
              for part in (slice(0, 25), slice(25, None))]  # fmt: skip
    counts = [add_counts(first, second) for first, second in zip(*halves, strict=True)]
    for codec, block, count in zip(codecs, blocks, counts, strict=True):
        whole = count_symbols(codec, block)
        np.testing.assert_array_equal(count.symbols, whole.symbols)
        assert dataclasses.astuple(whole)[2:] == dataclasses.astuple(count)[2:]
        assert (count.symbols.sum(axis=1) == 60 * N).all()
        assert count.values == block.size
    refined = [refine(table, count) for table, count in zip(tables, counts, strict=True)]
    before, after = coded_bits(tables, counts), coded_bits(refined, counts)
    assert after < before
    assert after == pytest.approx(1.0 + 3 / N, abs=0.12)  # page means of 32 tokens cost about 3 bits a channel
    spent = values = 0
    for table, block in zip(refined, blocks, strict=True):
        codec = build(config, table)
        pages = PageCoder.of(codec).encode(
            jax.jit(jax.vmap(lambda b, codec=codec: codec.encode(b)))(jnp.asarray(block))
        )
        spent += 8 * len(pages.data) - 24 * 16 * len(block)  # 24 bits of each of 16 lanes carry nothing
        values += block.size
    assert spent / values == pytest.approx(after, rel=0.01)


@pytest.mark.parametrize(("bits", "page_mean"), [(1.0, True), (4.0, True), (1.0, False)])
def test_calibration_meets_its_budget_on_its_text(bits: float, page_mean: bool):
    config = KltStorageConfig(bits=bits, block_size=N, page_mean=page_mean)
    blocks = [sample(layer, 60, seed) for seed, layer in enumerate(LAYERS)]
    tables = calibrate_storage(config, LAYERS, blocks)
    counts = [count_symbols(build(config, table), block) for table, block in zip(tables, blocks, strict=True)]
    assert coded_bits(tables, counts) == pytest.approx(bits, abs=0.02)
    assert all(set(table) == set(config.needs_tables()) for table in tables)
    # What it was not counted on: the same source takes little more.
    others = [sample(layer, 20, 10 + seed) for seed, layer in enumerate(LAYERS)]
    fresh = [count_symbols(build(config, table), block) for table, block in zip(tables, others, strict=True)]
    assert coded_bits(tables, fresh) < 1.06 * bits


def test_more_bits_are_never_worse_and_the_gain_keeps_the_variance():
    layer = LAYERS[1]
    block = sample(layer, 60, 5)
    coordinates = joint_coordinates(layer)
    losses = []
    for bits in (0.25, 0.5, 1, 2, 4):
        config = KltStorageConfig(bits=bits, block_size=N, page_mean=False)
        codec = build(config, fit_storage(config, [layer])[0])
        error = (decoded(codec, block) - block).transpose(0, 2, 1, 3).reshape(-1, C)
        losses.append(np.mean(np.sum((error @ coordinates.forward) ** 2, axis=1)))
        z = (decoded(codec, block).transpose(0, 2, 1, 3).reshape(-1, C) - np.asarray(codec.mean)) @ codec.analysis
        kept = codec.steps.shape[0]
        np.testing.assert_allclose(np.var(z[:, :kept], axis=0).mean(), 1.0, atol=0.05)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 100 * losses[-1]


def test_dead_channels_and_dead_heads_stay_finite():
    layer = moments(3)
    covariance = layer.covariance.copy()
    covariance[:5] = covariance[:, :5] = 0
    fisher_key = layer.fisher_key.copy()
    fisher_key[1] = 0
    dead = dataclasses.replace(layer, covariance=covariance, fisher_key=fisher_key)
    config = KltStorageConfig(bits=1.0, block_size=N)
    (table,) = fit_storage(config, [dead])
    assert all(np.isfinite(array).all() for array in table.values())
    block = sample(layer, 2, 0)
    assert np.isfinite(decoded(build(config, table), block)).all()
    broken = dataclasses.replace(layer, mean_key=np.full((K, D), np.nan))
    with pytest.raises(ValueError, match="calibrated mean_key is not finite"):
        fit_storage(config, [broken])


@pytest.mark.parametrize("dead", ["one head of keys", "values", "all"])
def test_what_costs_nothing_takes_no_bits_and_is_its_mean(dead: str):
    layer = dataclasses.replace(moments(3), covariance=np.diag(np.linspace(0.5, 2.0, C)))
    fisher_key, fisher_value = layer.fisher_key.copy(), 0 * layer.fisher_value
    fisher_key[1] = 0
    none = {
        "one head of keys": {"fisher_key": fisher_key},
        "values": {"fisher_value": fisher_value},
        "all": {"fisher_key": 0 * fisher_key, "fisher_value": fisher_value},
    }[dead]
    heads = {"one head of keys": [1], "values": [2, 3], "all": [0, 1, 2, 3]}[dead]
    layers = [dataclasses.replace(layer, **none), LAYERS[0]]
    config = KltStorageConfig(bits=3.0, block_size=N, page_mean=False)
    table, _ = fit_storage(config, layers)
    codec = build(config, table)
    assert codec.steps.shape[0] <= C - D * len(heads)
    means = np.concatenate([layer.mean_key, layer.mean_value])
    block = sample(layer, 1, 0)[0]
    shown = np.asarray(codec.decode(codec.encode(jnp.asarray(block))))
    for head in range(2 * K):
        error = np.sqrt(np.mean((shown[head] - block[head]) ** 2))
        if head in heads:
            np.testing.assert_allclose(shown[head], np.broadcast_to(means[head], (N, D)), atol=1e-3)
        else:
            assert error < 0.5
    for page_mean in (False, True):  # in the codes of a page, whose own mean is known besides
        config = KltStorageConfig(bits=3.0, block_size=N, page_mean=page_mean)
        codec = build(config, fit_storage(config, layers)[0])
        wild = np.asarray(codec.decode(codec.encode(jnp.asarray(50 * block))))
        assert np.abs(wild).max() < 200


def test_a_layer_that_costs_nothing_has_pages():
    layer = moments(3)
    dead = dataclasses.replace(layer, fisher_key=0 * layer.fisher_key, fisher_value=0 * layer.fisher_value)
    config = KltStorageConfig(bits=1.0, block_size=N)
    blocks = [sample(each, 20, 0) for each in (dead, LAYERS[0])]
    tables = calibrate_storage(config, [dead, LAYERS[0]], blocks)
    counts = [count_symbols(build(config, table), block) for table, block in zip(tables, blocks, strict=True)]
    assert coded_bits(tables, counts) == pytest.approx(1.0, abs=0.02)
    codec = build(config, tables[0])
    assert codec.steps.shape[0] == 0
    codes = jax.jit(jax.vmap(codec.encode))(jnp.asarray(blocks[0]))
    coder = PageCoder.of(codec)
    pages = coder.encode(codes)
    parts = [pages.data[end - size : end] for end, size in zip(np.cumsum(pages.nbytes), pages.nbytes, strict=True)]
    back = coder.decode(parts, pages.checksums)
    for ours, theirs in zip(jax.tree.leaves(codes), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_joint_blocks_are_whole_pages_in_order():
    key, value = np.arange(2 * 70 * D).reshape(2, 70, D), -np.arange(2 * 70 * D).reshape(2, 70, D)
    blocks = joint_blocks(key, value, N)
    assert blocks.shape == (2, 4, N, D)
    np.testing.assert_array_equal(blocks[1, 1], key[1, N : 2 * N])
    np.testing.assert_array_equal(blocks[0, 2], value[0, :N])

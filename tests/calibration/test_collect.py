"""The probe and the Fisher matrices, against a real cache, brute force and finite differences."""

import dataclasses
import functools
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration import collect
from kakeya_jax.codec import CodecConfig
from kakeya_jax.models import probe
from kakeya_jax.models.probe import PerturbedCache, coded_for
from kakeya_jax.pytree import payload_field, pytree_dataclass, static_field
from kakeya_jax.recipe import Recipe, Rule
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, RopeClass

LENGTH = 100
GEOMETRIES = (
    Geometry(sinks=2, recent=9, page=16, max_length=LENGTH),
    Geometry(sinks=4, recent=1, page=32, max_length=LENGTH),
)


@pytest.fixture(autouse=True, scope="module")
def _short_chunks():
    """Several chunks of queries, none of which ends where a page closes."""
    before, probe.CHUNK = probe.CHUNK, 40
    yield
    probe.CHUNK = before


@pytest.fixture(scope="module")
def tokens(passages: np.ndarray) -> jax.Array:
    return jnp.asarray(passages[0])


def perturbation(config: Any, windows: tuple[Geometry, ...], make: Any) -> PerturbedCache:
    """A cache whose errors are ``make(index)`` of the window, layer and stream in turn."""
    leaves, tree = jax.tree.flatten(PerturbedCache.zeros(config, LENGTH, windows))
    filled = jax.tree.unflatten(tree, [make(index, leaf.shape) for index, leaf in enumerate(leaves)])
    layers = tuple(dataclasses.replace(layer, at_zero=False) for layer in filled.layers)
    return dataclasses.replace(filled, layers=layers)


def zeros(index: int, shape: tuple[int, ...]) -> jax.Array:
    del index
    return jnp.zeros(shape)


def noise(index: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(index), shape)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model: Any, params: Any, tokens: jax.Array, cache: Any = None) -> jax.Array:
    return model.apply({"params": params}, tokens[None], cache=cache).logits[0]


@functools.partial(jax.jit, static_argnums=0)
def log_likelihood(model: Any, params: Any, tokens: jax.Array, labels: jax.Array, cache: Any) -> jax.Array:
    predicted = jax.nn.log_softmax(logits_of(model, params, tokens, cache))
    return jnp.sum(jnp.take_along_axis(predicted, labels[:, None], axis=1))


gradient_of = jax.jit(jax.grad(log_likelihood, argnums=4), static_argnums=0)
sample_labels = jax.jit(collect.sample_labels)
update = jax.jit(collect.update, static_argnums=0, static_argnames=("windows", "samples"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftedConfig(CodecConfig):
    """Stores everything exactly and adds the same vector to all that it decodes."""

    name: ClassVar[str] = "shifted"
    rope: ClassVar[RopeClass] = "pre"
    amount: float = 0.3

    def build(self, head_dim: int, **_: Any) -> "Shifted":
        return Shifted(config=self, shift=self.amount * jnp.cos(jnp.arange(head_dim, dtype=jnp.float32)))


@pytree_dataclass
class ShiftedCode:
    exact: Array = payload_field()


@pytree_dataclass
class Shifted:
    shift: Array
    config: ShiftedConfig = static_field()

    def encode(self, block: Array, key: Array | None = None) -> ShiftedCode:
        del key
        return ShiftedCode(exact=block)

    def decode(self, code: ShiftedCode) -> Array:
        return code.exact + self.shift


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_probe_reads_what_a_cache_with_such_errors_would(model, params, config, tokens, geometry: Geometry):
    shifted = ShiftedConfig(block_size=geometry.page)
    recipe = Recipe(rules=(Rule(codec=shifted),), sinks=geometry.sinks, recent=geometry.recent)
    cache = CompressedCache.init(config, recipe, batch_size=1, max_length=LENGTH, dtype=jnp.float32)
    shift = shifted.build(config.head_dim).shift
    error = perturbation(config, (geometry,), lambda _, shape: jnp.broadcast_to(shift, shape))
    found, expected = (logits_of(model, params, tokens, each) for each in (error, cache))
    dense = logits_of(model, params, tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert float(jnp.max(jnp.abs(found - dense))) > 0.5


def test_tokens_in_the_window_may_have_any_error(model, params, config, tokens):
    """Exact for a query: the newest tokens, sinks, and every page that closes later."""
    geometry = GEOMETRIES[0]
    coded = np.asarray(coded_for(geometry, LENGTH))
    dense = logits_of(model, params, tokens)
    for token, first_reader in ((1, None), (2, 26), (17, 26), (18, 42), (97, None)):
        readers = np.flatnonzero(coded[:, token])
        assert (readers[0] if len(readers) else None) == first_reader

        def one_token(index: int, shape: tuple[int, ...], token: int = token) -> jax.Array:
            return 5.0 * noise(index, shape).at[:, :token].set(0.0).at[:, token + 1 :].set(0.0)

        moved = np.abs(logits_of(model, params, tokens, perturbation(config, (geometry,), one_token)) - dense).max(1)
        assert (moved[: LENGTH if first_reader is None else first_reader] <= 1e-4).all()
        if first_reader is not None:
            assert moved[first_reader:].max() > 0.1


def test_gradients_at_zero_are_those_of_the_perturbed_model(model, params, config, tokens):
    labels = jax.random.randint(jax.random.key(1), (LENGTH,), 0, config.vocab_size)
    at_zero = gradient_of(model, params, tokens, labels, PerturbedCache.zeros(config, LENGTH, GEOMETRIES))
    through = gradient_of(model, params, tokens, labels, perturbation(config, GEOMETRIES, zeros))
    for found, expected in zip(jax.tree.leaves(at_zero), jax.tree.leaves(through), strict=True):
        assert float(jnp.max(jnp.abs(expected))) > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fisher_matrices_are_second_moments_of_finite_differences(model, params, config, tokens):
    """One direction in the space of all errors: the gradient along it is a difference of log-likelihoods."""
    labels = sample_labels(jax.random.key(3), logits_of(model, params, tokens))
    gradient = gradient_of(model, params, tokens, labels, PerturbedCache.zeros(config, LENGTH, GEOMETRIES))
    for seed in range(3):
        direction = perturbation(config, GEOMETRIES, lambda index, shape, seed=seed: noise(index + 9 * seed, shape))
        along = sum(
            float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        step = 3e-3
        moved = (jax.tree.map(lambda x, by=by: by * x, direction) for by in (step, -step))
        plus, minus = (log_likelihood(model, params, tokens, labels, cache) for cache in moved)
        assert float(plus - minus) / (2 * step) == pytest.approx(along, rel=0.02, abs=0.1)


def test_update_sums_outer_products_of_gradients(model, params, config, tokens):
    key, samples = jax.random.key(5), 2
    empty = collect.init(config, 2, joint=False)
    state = update(model, params, empty, tokens, key, windows=GEOMETRIES, samples=samples)
    logits = logits_of(model, params, tokens)
    outer = np.zeros((2, 2, 2, config.num_kv_heads, 16, 16))  # window, layer, stream
    for sample in jax.random.split(key, samples):
        labels = sample_labels(sample, logits)
        gradient = gradient_of(model, params, tokens, labels, perturbation(config, GEOMETRIES, zeros))
        for index, layer in enumerate(gradient.layers):
            for stream, of_windows in enumerate((layer.key, layer.value)):
                for window, each in enumerate(of_windows):
                    outer[window, index, stream] += np.einsum("btkd,btke->kde", each, each)
    for window, geometry in enumerate(GEOMETRIES):
        coded = int(np.asarray(coded_for(geometry, LENGTH)).any(axis=0).sum())
        for index, layer in enumerate(state):
            for stream, fishers in enumerate((layer.key_fisher, layer.value_fisher)):
                expected = outer[window, index, stream]
                assert float(fishers[window].count.value()) == coded * samples
                found = np.asarray(fishers[window].value()) * coded * samples
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_update_sums_moments_without_the_first_tokens(model, params, config, tokens):
    empty = collect.init(config, 0, joint=True)
    found = update(model, params, empty, tokens, jax.random.key(0), windows=(), samples=1)
    _, sown = model.apply({"params": params}, tokens[None], mutable=["intermediates"])
    for layer, (each, vectors) in enumerate(zip(found, collect.activations(sown["intermediates"]), strict=True)):
        key, value, query = (np.asarray(vectors[name], np.float64)[:, 4:] for name in ("key", "value", "query"))
        joined = np.concatenate([key, value]).transpose(1, 0, 2).reshape(LENGTH - 4, -1)
        assert each.both is not None, layer
        np.testing.assert_allclose(each.both.covariance()[0], np.cov(joined.T, bias=True), atol=2e-5)
        np.testing.assert_allclose(each.key.mean.value(), key.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(each.value.largest, np.abs(value).max(axis=1), rtol=1e-5)
        groups = query.reshape(config.num_kv_heads, -1, 16)
        expected = np.einsum("knd,kne->kde", groups, groups) / groups.shape[1]
        np.testing.assert_allclose(each.query.value(), expected, atol=1e-4)
        assert each.key_fisher == ()


def test_the_state_does_not_grow_and_is_donated(model, params, config, tokens):
    step = jax.jit(
        lambda state, tokens: collect.update(model, params, state, tokens, jax.random.key(0), windows=(), samples=1),
        donate_argnums=0,
    )
    before = collect.init(config, 0, joint=False)
    after = step(before, tokens)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, step(jax.tree.map(jnp.copy, after), tokens))
    assert before[0].key.scatter.total.is_deleted()


def test_labels_are_drawn_from_the_prediction():
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32) * 2
    logits[[0, 130, 299]] = -np.inf
    draws = np.asarray(sample_labels(jax.random.key(0), jnp.broadcast_to(jnp.asarray(logits), (20_000, 300))))
    expected = np.asarray(jax.nn.softmax(logits)) * len(draws)
    observed = np.bincount(draws, minlength=300)
    assert (observed[expected == 0] == 0).all()
    common = expected > 20
    assert common.sum() > 80
    score = (observed - expected)[common] / np.sqrt(expected[common])
    assert abs(float(np.mean(score**2)) - 1.0) < 0.35  # chi-square over its degrees of freedom
    certain = jnp.full((5, 300), -jnp.inf).at[:, 129].set(0.0)
    np.testing.assert_array_equal(sample_labels(jax.random.key(1), certain), 129)

"""Kernels over rotated codes: against float64, lowered for a GPU without one, and on a GPU where there is one."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracle import Streams, assert_attends, packed_format, random_streams

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.codecs.turboquant import coordinate_levels
from kakeya_jax.pallas_kernels.attention import compressed_attention, softmax_state, triton
from kakeya_jax.pallas_kernels.attention.level_polynomial import LARGEST_ERROR, fit_levels
from kakeya_jax.pallas_kernels.attention.softmax_state import SoftmaxState
from kakeya_jax.pallas_kernels.attention.triton_rotated import Tiling
from kakeya_jax.pallas_kernels.attention.triton_rotated import attend_rotated as attend_triton
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

NEW = jax.__version_info__[:2] >= (0, 11)
needs_mosaic = pytest.mark.skipif(not NEW, reason=f"Mosaic GPU kernels need jax 0.11, this is {jax.__version__}")
SHAPES = [(64, 1, (4, 4)), (128, 4, (4, 4)), (128, 8, (4, 2)), (64, 5, (2, 2)), (128, 2, (2, 4))]
LENGTHS = [256, 64, 0, 192]
SCALE = 0.2


def attend_mosaic(*arguments, splits: int, **options) -> SoftmaxState:
    from kakeya_jax.pallas_kernels.attention.warp_rotated import attend_rotated

    return attend_rotated(*arguments, splits=splits, **options)


def run(attend, streams: Streams, bits: tuple[int, int]) -> SoftmaxState:
    formats = {"key_format": packed_format(bits[0]), "value_format": packed_format(bits[1])}
    return jax.jit(functools.partial(attend, **formats, scale=SCALE))(*streams)


def interpreted(splits: int):
    return functools.partial(attend_triton, tiling=Tiling(tile=32, splits=splits), interpret=True)


def on_gpu(name: str, splits: int):
    if name == "triton":
        return functools.partial(attend_triton, tiling=Tiling(splits=splits))
    return functools.partial(attend_mosaic, splits=splits)


@pytest.mark.parametrize(("dim", "group", "bits"), [*SHAPES, (64, 16, (4, 4)), (32, 3, (4, 2))])
def test_triton_kernel_interpreted(dim: int, group: int, bits: tuple[int, int]):
    streams = random_streams(dim, group, bits, LENGTHS, tokens=256)
    assert_attends(run(interpreted(2), streams, bits), streams, bits, SCALE, 1e-3)


@pytest.mark.parametrize("splits", [1, 7])
def test_result_does_not_depend_on_the_number_of_splits(splits: int):
    streams = random_streams(64, 4, (4, 4), LENGTHS, tokens=256)
    assert_attends(run(interpreted(splits), streams, (4, 4)), streams, (4, 4), SCALE, 1e-3)


@pytest.mark.parametrize("code", [0, 255])
def test_equal_codes(code: int):
    streams = random_streams(64, 2, (4, 2), LENGTHS, tokens=256)
    streams = streams._replace(
        key_codes=jnp.full_like(streams.key_codes, code), value_codes=jnp.full_like(streams.value_codes, code)
    )
    assert_attends(run(interpreted(2), streams, (4, 2)), streams, (4, 2), SCALE, 1e-3)


def test_scales_of_four_orders_of_magnitude():
    streams = random_streams(64, 4, (4, 4), LENGTHS, tokens=256, spread=4.0)
    assert_attends(run(interpreted(2), streams, (4, 4)), streams, (4, 4), SCALE, 2e-3)


def test_one_token_dominates():
    streams = random_streams(64, 2, (4, 4), LENGTHS, tokens=256)
    scales = streams.key_scales.at[:, 17].set(100.0)
    streams = streams._replace(key_scales=scales, query=3.0 * streams.query)
    assert_attends(run(interpreted(2), streams, (4, 4)), streams, (4, 4), SCALE, 1e-3)


def test_two_bit_levels_are_exact_and_four_bit_levels_near():
    for bits, tolerance in ((2, 1e-12), (3, 1e-12), (4, LARGEST_ERROR)):
        levels = coordinate_levels(bits)
        coefficients = fit_levels(tuple(map(float, levels)))
        count = len(levels)
        u = (2.0 * np.arange(count) - count + 1) / count
        found = sum(each * u ** (2 * power + 1) for power, each in enumerate(coefficients))
        np.testing.assert_allclose(found, levels, atol=tolerance)


def test_levels_that_are_no_odd_function_are_refused():
    with pytest.raises(NotImplementedError, match="not symmetric"):
        fit_levels((-1.0, -0.5, 0.6, 1.0))
    jagged = np.sort(np.random.default_rng(0).uniform(0.0, 3.0, 8))
    with pytest.raises(NotImplementedError, match="misses by"):
        fit_levels((*(-jagged[::-1]).tolist(), *jagged.tolist()))


def shaped(dim: int, group: int, bits: tuple[int, int]) -> Streams:
    return jax.eval_shape(lambda: random_streams(dim, group, bits, LENGTHS, tokens=256))


def for_an_h200():
    """Lowering for a GPU on a machine without one needs to know which, from jax 0.11 on."""
    if not NEW:
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="cuda")
    return use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


@pytest.mark.filterwarnings("ignore:.*[Tt]riton.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize(("dim", "group", "bits"), SHAPES)
def test_kernels_lower_for_cuda(name: str, dim: int, group: int, bits: tuple[int, int]):
    formats = {"key_format": packed_format(bits[0]), "value_format": packed_format(bits[1])}
    attend = functools.partial(on_gpu(name, 2), **formats, scale=SCALE)
    with for_an_h200():
        lowered = jax.jit(attend).trace(*shaped(dim, group, bits)).lower(lowering_platforms=("cuda",))
    assert {"triton": "triton", "mosaic_gpu": "mosaic_gpu"}[name] in lowered.as_text()


@needs_mosaic
@pytest.mark.parametrize(("dim", "group", "bits"), SHAPES)
def test_query_fragments_hold_every_dimension_once(dim: int, group: int, bits: tuple[int, int]):
    from kakeya_jax.pallas_kernels.attention import warp_rotated

    del group
    dims = warp_rotated._query_dims(warp_rotated._Shape(dim, *map(packed_format, bits)))
    for row in range(8):
        np.testing.assert_array_equal(np.sort(dims[4 * row : 4 * row + 4], axis=None), np.arange(dim))


@pytest.mark.parametrize(
    ("implementation", "recipe", "reason"),
    [
        ("triton", "both=turboquant(bits=4)", "no NVIDIA GPU"),
        ("mosaic_gpu", "both=turboquant(bits=4)", "no NVIDIA GPU"),
        ("triton", "both=int8", "int8"),
        ("triton", "both=turboquant(bits=3)", r"turboquant\(bits=3, qjl=False\)"),
        ("mosaic_gpu", "key@pre=turboquant(bits=4),value=turboquant(bits=4)", "before their rotary embedding"),
        ("triton", "both=turboquant(bits=4,block_size=8)", "pages of 8 tokens"),
        ("mosaic_gpu", "both=turboquant(bits=4,block_size=32)", "pages of 32 tokens"),
    ],
)
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="says what it says without a GPU")
def test_what_has_no_kernel_is_refused_by_name(implementation: str, recipe: str, reason: str):
    layer, query, positions = decode_step(recipe, group=2)
    with pytest.raises(NotImplementedError, match=reason):
        compressed_attention(
            query, layer.key, layer.value, positions=positions, rope=Rope(head_dim=64), scale=SCALE,
            implementation=implementation,
        )  # fmt: skip


@pytest.mark.parametrize("bits", [2, 4])
def test_decode_step_through_the_interpreted_kernel(bits: int):
    """Rotations, exact tokens and ragged rows around the kernel, against the reference."""
    layer, query, positions = decode_step(f"both=turboquant(bits={bits},block_size=32)", group=2)
    arguments = {"positions": positions, "rope": Rope(head_dim=64), "scale": SCALE}
    expected = compressed_attention(query, layer.key, layer.value, implementation="reference", **arguments)
    found = triton.attention_triton(query, layer.key, layer.value, interpret=True, **arguments)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def test_parts_of_a_softmax_put_together_are_the_whole():
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (1, 2, 1, 3, 8))
    key, value = (jax.random.normal(each, (1, 2, 10, 8)) for each in keys[1:])
    everything = jnp.ones((1, 1, 10), bool)
    nothing = softmax_state.empty((1, 2, 1, 3), 8)
    whole = softmax_state.attend(nothing, query, key, value, everything, 0.5)
    parts = [
        softmax_state.attend(nothing, query, key[:, :, part], value[:, :, part], everything[:, :, part], 0.5)
        for part in (slice(0, 4), slice(4, 10))
    ]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *parts, nothing)
    for state in (softmax_state.combine(*parts), softmax_state.reduce(stacked, axis=0)):
        np.testing.assert_allclose(softmax_state.output(state), softmax_state.output(whole), rtol=2e-6, atol=2e-7)
    assert not np.asarray(softmax_state.output(nothing)).any()


def decode_step(recipe: str, group: int):
    """A filled layer with rows of different lengths, a query for each, and their positions."""
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    parsed = Recipe.parse(recipe + ",sinks=2,recent=5")
    layer = CompressedCache.init(shape, parsed, batch_size=3, max_length=300).layers[0]
    k, v, q = jax.random.split(jax.random.key(group), 3)
    key, value = (jax.random.normal(each, (3, 280, 2, 64)) for each in (k, v))
    lengths = jnp.array([280, 150, 3])
    valid = jnp.arange(280) < lengths[:, None]
    layer = jax.jit(type(layer).append, static_argnames="rope")(
        layer, key, value, rope=Rope(head_dim=64), valid=valid
    ).layer
    return layer, jax.random.normal(q, (3, 1, 2 * group, 64)), lengths[:, None] - 1


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*[Tt]riton.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize(("dim", "group", "bits"), SHAPES)
def test_gpu_kernels_attend(name: str, dim: int, group: int, bits: tuple[int, int]):
    streams = random_streams(dim, group, bits, [4096, 64, 0, 2112], tokens=4096)
    for splits in (1, 2, 7):
        first, second = (run(on_gpu(name, splits), streams, bits) for _ in range(2))
        assert_attends(first, streams, bits, SCALE, 2e-3)
        jax.tree.map(np.testing.assert_array_equal, first, second)  # run twice, equal bit for bit


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*[Tt]riton.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize("code", [0, 255])
def test_gpu_kernels_at_extremes(name: str, code: int):
    streams = random_streams(128, 4, (4, 4), [4096, 64, 0, 2112], tokens=4096, spread=4.0)
    streams = streams._replace(
        key_scales=streams.key_scales.at[:, 17].set(100.0),
        key_codes=streams.key_codes.at[:, 16:48].set(code),
        value_codes=streams.value_codes.at[:, 16:48].set(code),
    )
    assert_attends(run(on_gpu(name, 3), streams, (4, 4)), streams, (4, 4), SCALE, 2e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*[Tt]riton.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize("recipe", ["both=turboquant(bits=4)", "key=turboquant(bits=4),value=turboquant(bits=2)"])
def test_gpu_decode_step_is_the_reference(name: str, recipe: str):
    layer, query, positions = decode_step(recipe, group=4)
    arguments = {"positions": positions, "rope": Rope(head_dim=64), "scale": SCALE}
    step = jax.jit(compressed_attention, static_argnames=("rope", "scale", "implementation"))
    expected = step(query, layer.key, layer.value, implementation="reference", **arguments)
    found = step(query, layer.key, layer.value, implementation=name, **arguments)
    assert np.linalg.norm(found - expected) <= 2e-3 * np.linalg.norm(expected)

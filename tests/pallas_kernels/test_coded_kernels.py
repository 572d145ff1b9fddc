"""Kernels over packed codes: against float64 in an emulator, lowered for a GPU without one, and on a GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_steps import assert_attends as assert_step_attends
from decode_steps import assert_gpu_attends, attended, filled, step
from kernel_oracle import Streams, assert_attends, formats, keys_of, random_indices, random_streams
from mosaic import lowered, needs_mosaic

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.pallas_kernels.attention import compressed_attention, mosaic_gpu, softmax_state, triton
from kakeya_jax.pallas_kernels.attention import decode_step as decode_step_module
from kakeya_jax.pallas_kernels.attention.attend_coded import attend_coded
from kakeya_jax.pallas_kernels.attention.coded_logits import coded_logits
from kakeya_jax.pallas_kernels.attention.program_counts import choose_splits, exact_programs
from kakeya_jax.pallas_kernels.attention.softmax_state import SoftmaxState
from kakeya_jax.pallas_kernels.attention.triton_rotated import Tiling
from kakeya_jax.pallas_kernels.attention.triton_rotated import attend_rotated as attend_triton
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

SHAPES = [(64, 1, (4, 4)), (128, 4, (4, 4)), (128, 8, (4, 2)), (64, 5, (2, 2)), (128, 2, (2, 4))]
MORE_SHAPES = [(128, 4, (3, 3)), (64, 8, (3, 4)), (64, 2, (8, 8)), (128, 3, (2, 8))]
"""What the Triton kernel does not take."""
LENGTHS = [256, 64, 0, 192]
SCALE = 0.2

TURNED = "turboquant(bits={},rotation=hadamard,block_size=64)"
HADAMARD = [
    *(
        (f"both={TURNED.format(bits)}", dim, group)
        for bits in (2, 3, 4)
        for dim, group in ((64, 3), (128, 4), (128, 8))
    ),
    *((f"both={TURNED.format(4)}", dim, group) for dim, group in ((128, 1), (64, 1), (64, 8), (64, 12), (128, 13))),
    (f"key={TURNED.format(4)},value=turboquant(bits=4,block_size=64)", 128, 4),
    (f"key=turboquant(bits=3,block_size=64),value={TURNED.format(3)}", 128, 8),
    (f"key={TURNED.format(2)},value=turboquant(bits=4,block_size=64)", 64, 3),
    (f"key=turboquant(bits=4,block_size=64),value={TURNED.format(2)}", 64, 8),
    (f"key={TURNED.format(4)},value=int4(block_size=64)", 64, 4),
    (f"key=int8(block_size=64),value={TURNED.format(4)}", 128, 3),
    (f"key=kivi(bits=2,block_size=64),value={TURNED.format(2)}", 128, 4),
    (f"key={TURNED.format(4)},value=besicovitch(block_size=64)", 128, 4),
    (f"key={TURNED.format(3)},value=besicovitch(block_size=64)", 64, 8),
]
"""Rotations that programs do by a transform, of keys and of values."""

Attend = Any


def run(attend: Attend, streams: Streams, bits: tuple[int, int]) -> SoftmaxState:
    return jax.jit(functools.partial(attend, **formats(bits), scale=SCALE))(*streams)


def interpreted(name: str, splits: int) -> Attend:
    if name == "triton":
        return functools.partial(attend_triton, tiling=Tiling(tile=64, splits=splits), interpret=True)
    return functools.partial(attend_coded, splits=splits, interpret=True)


def on_gpu(name: str, splits: int) -> Attend:
    if name == "triton":
        return functools.partial(attend_triton, tiling=Tiling(splits=splits))
    return functools.partial(attend_coded, splits=splits)


@pytest.mark.parametrize(("dim", "group", "bits"), [*SHAPES, (64, 16, (4, 4))])
def test_triton_kernel_interpreted(dim: int, group: int, bits: tuple[int, int]):
    streams = random_streams(dim, group, bits, LENGTHS, tokens=256)
    assert_attends(run(interpreted("triton", 2), streams, bits), streams, bits, SCALE, 1e-3)


@pytest.mark.parametrize(("dim", "group", "bits"), [*SHAPES, *MORE_SHAPES, (128, 4, (4, 3))])
def test_mosaic_program_emulated(dim: int, group: int, bits: tuple[int, int]):
    streams = random_streams(dim, group, bits, LENGTHS, tokens=256)
    assert_attends(run(interpreted("mosaic_gpu", 2), streams, bits), streams, bits, SCALE, 1e-3)


@pytest.mark.parametrize("name", ["triton", "mosaic_gpu"])
@pytest.mark.parametrize("splits", [1, 7])
def test_result_does_not_depend_on_the_number_of_splits(name: str, splits: int):
    streams = random_streams(64, 4, (4, 4), LENGTHS, tokens=256)
    assert_attends(run(interpreted(name, splits), streams, (4, 4)), streams, (4, 4), SCALE, 1e-3)


@pytest.mark.parametrize("name", ["triton", "mosaic_gpu"])
@pytest.mark.parametrize("highest", [False, True])
def test_equal_codes(name: str, highest: bool):
    indices = random_indices(64, (4, 2), len(LENGTHS), 256)
    indices = type(indices)(*(np.full_like(each, each.max() if highest else 0) for each in indices))
    streams = random_streams(64, 2, (4, 2), LENGTHS, tokens=256, indices=indices)
    assert_attends(run(interpreted(name, 2), streams, (4, 2)), streams, (4, 2), SCALE, 1e-3)


@pytest.mark.parametrize(("name", "tolerance"), [("triton", 2e-3), ("mosaic_gpu", 1e-3)])
def test_scales_of_four_orders_of_magnitude(name: str, tolerance: float):
    streams = random_streams(64, 4, (4, 4), LENGTHS, tokens=256, spread=4.0)
    assert_attends(run(interpreted(name, 2), streams, (4, 4)), streams, (4, 4), SCALE, tolerance)


@pytest.mark.parametrize("name", ["triton", "mosaic_gpu"])
def test_one_token_dominates(name: str):
    streams = random_streams(64, 2, (4, 4), LENGTHS, tokens=256)
    scales = streams.key_scales.at[:, 17].set(100.0)
    streams = streams._replace(key_scales=scales, query=3.0 * streams.query)
    assert_attends(run(interpreted(name, 2), streams, (4, 4)), streams, (4, 4), SCALE, 1e-3)


def test_many_small_weights_beside_a_large_one_are_not_lost():
    """Weights of 1e-5 beside a dominating token, a thousand of them: below half a step of 16 bits, if all were in one
    tile's units."""
    indices = random_indices(64, (4, 4), 1, 1024)
    value = np.full_like(indices.value, 12)
    streams = random_streams(64, 1, (4, 4), [1024], tokens=1024, spread=0.0, indices=indices._replace(value=value))
    logit = streams.query[0, 0] @ jnp.asarray(indices.key[0, 5] - 7.5, jnp.float32)
    scales = jnp.where(jnp.arange(1024) == 5, jnp.sign(logit) * 16.0 / jnp.abs(logit) / SCALE, 0.0)
    streams = streams._replace(key_scales=jnp.broadcast_to(scales, (1, 1024)).astype(jnp.float16))
    assert_attends(run(interpreted("mosaic_gpu", 1), streams, (4, 4)), streams, (4, 4), SCALE, 1e-3)


def logits_of(streams: Streams, bits: int, splits: int, *, interpret: bool, rotation: Any = None) -> Any:
    form: Any = formats((bits, bits))
    options = {"key": form["key"], "key_unit": form["key_unit"], "scale": SCALE}
    found = jax.jit(functools.partial(coded_logits, **options, splits=splits, interpret=interpret))
    return found(streams.query, streams.key_codes, streams.key_scales, rotation=rotation)


def assert_logits(found: Any, streams: Streams, bits: int, tolerance: float) -> None:
    keys = keys_of(streams, (bits, bits))
    expected = np.einsum("ngd,ntd->ngt", np.asarray(streams.query, np.float64), keys) * SCALE
    assert np.abs(np.asarray(found, np.float64) - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("dim", "group", "bits"), [(128, 8, 4), (64, 3, 2), (128, 1, 3)])
def test_logits_alone_emulated(dim: int, group: int, bits: int):
    streams = random_streams(dim, group, (bits, bits), [256] * 3, tokens=256)
    for splits in (1, 3):
        assert_logits(logits_of(streams, bits, splits, interpret=True), streams, bits, 1e-3)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0].astype(np.float32)
    turned_back = streams._replace(query=streams.query @ turn)
    found = logits_of(turned_back, bits, 2, interpret=True, rotation=jnp.asarray(turn))
    assert_logits(found, streams, bits, 1e-3)
    with pytest.raises(NotImplementedError, match="logits of 9 queries"):
        logits_of(streams._replace(query=jnp.zeros((3, 9, dim))), bits, 1, interpret=True)


def shaped(dim: int, group: int, bits: tuple[int, int]) -> Streams:
    return jax.eval_shape(lambda: random_streams(dim, group, bits, LENGTHS, tokens=256))


@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize(("dim", "group", "bits"), SHAPES)
def test_kernels_lower_for_cuda(name: str, dim: int, group: int, bits: tuple[int, int]):
    attend = functools.partial(on_gpu(name, 2), **formats(bits), scale=SCALE)
    assert name in lowered(attend, *shaped(dim, group, bits))


@needs_mosaic
def test_logits_alone_lower_for_cuda():
    streams = shaped(128, 8, (4, 4))
    form: Any = formats((4, 4))
    logits = functools.partial(coded_logits, key=form["key"], key_unit=form["key_unit"], scale=SCALE, splits=2)
    program = lowered(logits, streams.query, streams.key_codes, streams.key_scales)
    assert program.count("custom_call @mosaic_gpu") == 1


@needs_mosaic
@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        ("both=turboquant(bits=4)", 8),
        ("both=turboquant(bits=4,rotation=hadamard)", 8),
        ("both=int8", 4),
        ("both=int4", 4),
        ("both=kivi(bits=2)", 4),
    ],
)
def test_whole_steps_lower_for_cuda(recipe: str, group: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer, query, positions = decode_step(recipe, group)
    step = functools.partial(mosaic_gpu.attention_mosaic_gpu, rope=Rope(head_dim=64), scale=SCALE)
    program = lowered(lambda q, k, v, p: step(q, k, v, positions=p), query, layer.key, layer.value, positions)
    assert program.count("custom_call @mosaic_gpu") == 1


@pytest.mark.parametrize(
    ("implementation", "recipe", "reason"),
    [
        ("triton", "both=turboquant(bits=4)", "no NVIDIA GPU"),
        ("mosaic_gpu", "both=turboquant(bits=4)", "no NVIDIA GPU"),
        ("triton", "both=int8", "int8"),
        ("mosaic_gpu", "both=int8(group_size=32)", r"int8\(group_size=32\)"),
        ("triton", "both=int4", "int4"),
        ("mosaic_gpu", "both=int4(affine=true,group_size=64)", r"keys of int4\(group_size=64, affine=True"),
        ("mosaic_gpu", "both=int4(group_size=16)", r"values of int4\(group_size=16, affine=False"),
        ("mosaic_gpu", "both=kivi(axis=token)", r"keys of kivi\(group_size=32, axis=token"),
        ("mosaic_gpu", "both=kivi(group_size=64)", r"values of kivi\(group_size=64"),
        ("triton", "both=turboquant(bits=3)", r"turboquant\(bits=3, qjl=False"),
        ("mosaic_gpu", "both=turboquant(bits=4,qjl=true)", "qjl=True"),
        ("mosaic_gpu", "both=turboquant(bits=4,static_mean=true)", "a static mean"),
        ("mosaic_gpu", "key@pre=turboquant(bits=4),value=turboquant(bits=4)", "before their rotary embedding"),
        ("triton", "both=turboquant(bits=4,block_size=32)", "pages of 32 tokens"),
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


@pytest.mark.parametrize("name", ["triton", "mosaic_gpu"])
@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        ("both=turboquant(bits=4,block_size=64)", 2),
        ("key=turboquant(bits=4),value=turboquant(bits=2,block_size=64)", 5),
        ("both=turboquant(bits=2,rotation=hadamard),sinks=0,recent=1", 1),
        ("both=turboquant(bits=4),sinks=4,recent=128", 12),
    ],
)
def test_decode_step_through_the_interpreted_kernel(name: str, recipe: str, group: int):
    """Rotations, exact tokens and ragged rows around the kernel, against the reference."""
    layer, query, positions = decode_step(recipe, group)
    arguments = {"positions": positions, "rope": Rope(head_dim=64), "scale": SCALE}
    expected = compressed_attention(
        query, layer.key, layer.value, implementation="reference", return_lse=True, **arguments
    )
    attend = {"triton": triton.attention_triton, "mosaic_gpu": mosaic_gpu.attention_mosaic_gpu}[name]
    found = attend(query, layer.key, layer.value, interpret=True, **arguments)
    assert np.linalg.norm(found.out - expected.out) <= 1e-3 * np.linalg.norm(expected.out)
    np.testing.assert_allclose(found.lse, expected.lse, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        ("both=int8", 2),
        ("both=int8(block_size=64),sinks=0,recent=1", 5),
        ("key=int8,value=turboquant(bits=4)", 4),
        ("key=turboquant(bits=3),value=int8", 1),
    ],
)
def test_decode_step_over_bytes(recipe: str, group: int):
    """Levels that are their bytes, alone and beside levels that are half a unit more."""
    layer, query, positions = decode_step(recipe, group)
    arguments = {"positions": positions, "rope": Rope(head_dim=64), "scale": SCALE}
    expected = compressed_attention(query, layer.key, layer.value, implementation="reference", **arguments)
    found = mosaic_gpu.attention_mosaic_gpu(query, layer.key, layer.value, interpret=True, **arguments).out
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("recipe", "dim", "group"), HADAMARD)
def test_decode_step_with_transforms_is_that_of_float64(recipe: str, dim: int, group: int):
    layer, query, positions = filled(recipe, dim, group)
    found = step(layer, query, positions, splits=2, interpret=True)
    assert_step_attends(found, attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_decode_step_with_exact_tokens_of_half_precision(dtype: Any):
    layer, query, positions = decode_step("both=turboquant(bits=3,block_size=64),sinks=2,recent=5", 4, dtype)
    arguments = {"positions": positions, "rope": Rope(head_dim=64), "scale": SCALE}
    exactly = query.astype(jnp.float32)
    expected = compressed_attention(exactly, layer.key, layer.value, implementation="reference", **arguments)
    found = mosaic_gpu.attention_mosaic_gpu(query, layer.key, layer.value, interpret=True, **arguments).out
    assert found.dtype == dtype
    rounding = float(jnp.finfo(dtype).eps) / 2  # of the result; queries of it are exact
    assert np.linalg.norm(found.astype(jnp.float32) - expected) <= (1e-3 + rounding) * np.linalg.norm(expected)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_exact_tokens_shared_by_any_number_of_programs(count: int, monkeypatch: pytest.MonkeyPatch):
    layer, query, positions = filled("both=turboquant(bits=4,block_size=64),sinks=2,recent=128", 64, 4)
    monkeypatch.setattr(decode_step_module, "exact_programs", lambda *arguments, **options: count)
    found = step(layer, query, positions, interpret=True)
    assert_step_attends(found, attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize(("heads", "splits", "count"), [(8, 33, 5), (8, 48, 1), (64, 6, 2), (128, 3, 1), (256, 3, 1)])
def test_programs_of_exact_tokens_take_the_places_that_are_left(heads: int, splits: int, count: int):
    """Of 396; of 4 sinks and at most 256 other tokens, 64 for each, or as many as one program takes."""
    shape, recipe = CacheShape(num_layers=1, num_kv_heads=1, head_dim=64), Recipe.parse("turboquant-4")
    layer = CompressedCache.init(shape, recipe, batch_size=1, max_length=1000).layers[0]
    assert exact_programs(layer.key.geometry, heads, splits) == count


def test_splits_fill_a_gpu_evenly():
    """Of 396 places for programs: within a twentieth of a whole number of waves for all shapes of the benchmark."""
    for heads, tokens in ((8, 131072), (64, 32768), (256, 8192), (128, 16384)):
        waves = heads * choose_splits(heads, tokens) / 396
        assert np.ceil(waves) / waves < 1.05
    assert choose_splits(2, 64) == 1


@pytest.mark.parametrize(
    ("heads", "tokens", "splits"), [(8, 131072, 33), (24, 131072, 11), (8, 8192, 16), (64, 32768, 6)]
)
def test_splits_leave_places_for_exact_tokens_where_heads_divide_them(heads: int, tokens: int, splits: int):
    assert choose_splits(heads, tokens, preferred=264) == splits


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


def decode_step(recipe: str, group: int, dtype: Any = jnp.float32):
    """A filled layer with rows of different lengths, a query for each, and their positions."""
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    parsed = Recipe.parse(recipe if "recent" in recipe else recipe + ",sinks=2,recent=5")
    tables = None
    if "static_mean" in recipe:
        zeros = {"static_mean": jnp.zeros((2, 64)), "rope_frequencies": jnp.zeros(32)}
        tables = {(0, "key"): zeros, (0, "value"): zeros}
    layer = CompressedCache.init(shape, parsed, batch_size=3, max_length=300, dtype=dtype, tables=tables).layers[0]
    k, v, q = jax.random.split(jax.random.key(group), 3)
    key, value = (jax.random.normal(each, (3, 280, 2, 64)).astype(dtype) for each in (k, v))
    lengths = jnp.array([280, 150, 3])
    valid = jnp.arange(280) < lengths[:, None]
    layer = jax.jit(type(layer).append, static_argnames="rope")(
        layer, key, value, rope=Rope(head_dim=64), valid=valid
    ).layer
    return layer, jax.random.normal(q, (3, 1, 2 * group, 64)).astype(dtype), lengths[:, None] - 1


ON_GPU = [
    *(("triton", *shape) for shape in SHAPES),
    *(pytest.param("mosaic_gpu", *shape, marks=needs_mosaic) for shape in [*SHAPES, *MORE_SHAPES]),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "dim", "group", "bits"), ON_GPU)
def test_gpu_kernels_attend(name: str, dim: int, group: int, bits: tuple[int, int]):
    streams = random_streams(dim, group, bits, [4096, 64, 0, 2112], tokens=4096)
    for splits in (1, 2, 7):
        first, second = (run(on_gpu(name, splits), streams, bits) for _ in range(2))
        assert_attends(first, streams, bits, SCALE, 2e-3)
        jax.tree.map(np.testing.assert_array_equal, first, second)  # run twice, equal bit for bit


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize("code", [0, 15])
def test_gpu_kernels_at_extremes(name: str, code: int):
    indices = random_indices(128, (4, 4), 4, 4096)
    for each in indices:
        each[:, 16:48] = code
    streams = random_streams(128, 4, (4, 4), [4096, 64, 0, 2112], tokens=4096, spread=4.0, indices=indices)
    streams = streams._replace(key_scales=streams.key_scales.at[:, 17].set(100.0))
    assert_attends(run(on_gpu(name, 3), streams, (4, 4)), streams, (4, 4), SCALE, 2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", pytest.param("mosaic_gpu", marks=needs_mosaic)])
@pytest.mark.parametrize("group", [4, 8, 12])
@pytest.mark.parametrize(
    "recipe", ["both=turboquant(bits=4)", "key=turboquant(bits=4),value=turboquant(bits=2)", "both=int8"]
)
def test_gpu_decode_step_is_the_reference(name: str, recipe: str, group: int):
    if name == "triton" and "int8" in recipe:
        pytest.skip("the Triton kernel does not take it")
    layer, query, positions = decode_step(recipe, group)
    arguments = {"positions": positions, "rope": Rope(head_dim=64), "scale": SCALE}
    step = jax.jit(compressed_attention, static_argnames=("rope", "scale", "implementation"))
    expected = step(query, layer.key, layer.value, implementation="reference", **arguments)
    found, again = (step(query, layer.key, layer.value, implementation=name, **arguments) for _ in range(2))
    assert np.linalg.norm(found - expected) <= 2e-3 * np.linalg.norm(expected)
    np.testing.assert_array_equal(found, again)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize(("recipe", "dim", "group"), HADAMARD)
def test_gpu_decode_step_with_transforms_is_that_of_float64(recipe: str, dim: int, group: int):
    assert_gpu_attends(*filled(recipe, dim, group))


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize(("group", "bits"), [(8, 4), (4, 2)])
def test_gpu_logits_alone(group: int, bits: int):
    streams = random_streams(128, group, (bits, bits), [4096] * 3, tokens=4096)
    assert_logits(logits_of(streams, bits, 5, interpret=False), streams, bits, 1e-3)

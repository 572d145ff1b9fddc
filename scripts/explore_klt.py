"""What other quantisers would be worth inside ``klt``, before anything is written that stores or reads their codes.

python scripts/explore_klt.py MODEL --tokens FILE.npy --calibration FILE --recipe klt-4,sinks=0,recent=1 \
    --variant trellis --variant group=8 --variant widths=2:4:6:8 --variant gain=0.75 --variant kappa=1:1 --json OUT.json

Each variant (parts joined by ``+``) runs through the cache and the scores of ``kakeya eval``, protocol stream, beside
the recipe as it is. Pages hold the values that codes stand for, not the codes: the same numbers, whatever their layout.
Ratios of KL are paired; their 95 % intervals are of blocks of 100 tokens.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import klt_layout
from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration import klt_fit
from kakeya_jax.calibration.artifact import Calibration, load_calibration
from kakeya_jax.codecs import klt
from kakeya_jax.codecs.klt import Klt, KltConfig
from kakeya_jax.eval import protocols
from kakeya_jax.eval.environment import configure, environment, one_blas_thread
from kakeya_jax.eval.text import cut_passages, load_tokens
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.models import checkpoint
from kakeya_jax.numeric import to_f16
from kakeya_jax.pytree import fitted_field, payload_field, pytree_dataclass, side_field, static_field
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import rotate_by
from kakeya_jax.stream import Stream
from kakeya_jax.typing import StreamName

WARMUP, CHUNK, BLOCK = 512, 512, 100
SEQUENCES = 3000
"""Of 128 draws each, which a trellis's levels are made for."""

# Ungerboeck's trellis of four states: where each state's two branches lead is fixed by where each state comes from.
FROM = np.array([[0, 2], [0, 2], [1, 3], [1, 3]])
SUBSET = np.array([[0, 2], [2, 0], [1, 3], [3, 1]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What is changed: widths of channels, channels of a group, a trellis, exponent of the gain, cost of bias."""

    name: str = "as it is"
    widths: tuple[int, ...] = klt_layout.FAST_WIDTHS
    group: int | None = None
    trellis: bool = False
    gain: float = 0.5
    kappa: tuple[float, float] | None = None

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """From ``part+part``; a ``ValueError`` says what parts there are."""
        found: dict[str, Any] = {"name": text}
        for part in text.split("+"):
            name, _, value = part.partition("=")
            if name == "trellis":
                found[name] = True
            elif name == "group":
                found[name] = int(value)
            elif name == "gain":
                found[name] = float(value)
            elif name == "widths":
                found[name] = tuple(map(int, value.split(":")))
            elif name == "kappa":
                key, value_ = map(float, value.split(":"))
                found[name] = key, value_
            else:
                raise ValueError(f"{part!r} is none of trellis, group=N, gain=X, widths=A:B, kappa=KEY:VALUE")
        return cls(**found)


@pytree_dataclass
class Page:
    """Dequantised coordinates of a page ``[U, n, E]``, and its mean ``[U, E]``."""

    values: jax.Array = payload_field()
    mean: jax.Array = side_field()


@pytree_dataclass
class Trial:
    """A ``Klt`` whose quantiser is another one; ``width`` and ``gain`` are ``[U, E]``, ``levels`` for each width."""

    config: KltConfig = static_field()
    trellis: bool = static_field()
    widths: tuple[int, ...] = static_field()
    held: Klt = fitted_field()
    width: jax.Array = fitted_field()
    gain: jax.Array = fitted_field()
    levels: tuple[jax.Array, ...] = fitted_field()

    def encode(self, block: jax.Array, key: jax.Array | None = None) -> Page:
        """The page with its values rounded as ``Klt.encode`` would, by the variant's quantiser."""
        del key
        z = klt._map(klt._deviations(self.held, block), self.held.analysis)
        average = jnp.mean(z, axis=1)
        unit = to_f16(jnp.max(jnp.abs(average), axis=1) / 127.0).astype(jnp.float32)[:, None]
        mean = jnp.clip(jnp.round(average / jnp.maximum(unit, 1e-12)), -127, 127) * unit
        z = z - mean[:, None]
        stored = (self.width > 0).astype(jnp.float32)
        weights = (self.held.variances * stored)[:, None]

        def refit(_: int, scale: jax.Array) -> jax.Array:
            levels = self._nearest(z / klt.decode_scale(scale)[..., None])
            along, length = jnp.sum(weights * z * levels, -1), jnp.sum(weights * levels * levels, -1)
            return klt.encode_scale(along / jnp.maximum(length, 1e-30))

        count = jnp.maximum(stored.sum(axis=1), 1.0)[:, None]
        scale = klt.encode_scale(jnp.sqrt(jnp.sum(z * z * stored[:, None], axis=-1) / count))
        scale = klt.decode_scale(jax.lax.fori_loop(0, self.config.scale_rounds, refit, scale))[..., None]
        return Page(values=self._nearest(z / scale) * self.gain[:, None] * scale, mean=mean)

    def decode(self, page: Page) -> jax.Array:
        """As ``Klt.decode``."""
        together, frequencies = self.config.heads_together, self.held.rope_frequencies
        x = klt._part(klt._map(page.values + page.mean[:, None], self.held.synthesis), together)
        if frequencies is not None:
            x = rotate_by(x, -klt._angles(frequencies, x.shape[1]))
        return klt._mean_of_heads(self.held)[:, None] + x

    def _nearest(self, u: jax.Array) -> jax.Array:
        width = self.width[:, None]
        found = jnp.zeros_like(u)
        candidates = jnp.zeros((*u.shape, 4))
        for each, levels in zip(self.widths, self.levels, strict=True):
            if self.trellis and each < 8:
                of_subsets = jnp.stack([_round(u, levels[subset::4]) for subset in range(4)], -1)
                candidates = jnp.where((width == each)[..., None], of_subsets, candidates)
            else:
                found = jnp.where(width == each, _round(u, levels), found)
        if self.trellis:
            coded = (self.width > 0) & (self.width < 8)
            cost = jnp.square(u[..., None] - candidates) * self.held.variances[:, None, :, None]
            path = best_path(cost, coded[:, None])
            found = jnp.where(coded[:, None], jnp.take_along_axis(candidates, path[..., None], -1)[..., 0], found)
        return found


def best_path(cost: jax.Array, coded: jax.Array) -> jax.Array:
    """Subset of each of ``E`` values, ``[..., E]``, on the cheapest path (Viterbi) from state 0.

    Args:
        cost: ``[..., E, 4]`` of taking a value from each subset.
        coded: ``[..., E]``, broadcast: other values are no step of the path.
    """
    lead = cost.shape[:-2]
    steps = jnp.moveaxis(jnp.broadcast_to(coded, cost.shape[:-1]), -1, 0)

    def forward(metric: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        cost, real = step
        both = metric[..., FROM] + cost[..., SUBSET]
        return jnp.where(real[..., None], jnp.min(both, -1), metric), jnp.argmin(both, -1)

    start = jnp.broadcast_to(jnp.array([0.0, 1e30, 1e30, 1e30]), (*lead, 4))
    metric, branches = jax.lax.scan(forward, start, (jnp.moveaxis(cost, -2, 0), steps))

    def backward(state: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        branch, real = step
        taken = jnp.take_along_axis(branch, state[..., None], -1)[..., 0]
        return jnp.where(real, jnp.asarray(FROM)[state, taken], state), jnp.asarray(SUBSET)[state, taken]

    _, subsets = jax.lax.scan(backward, jnp.argmin(metric, -1), (branches, steps), reverse=True)
    return jnp.moveaxis(subsets, 0, -1)


@functools.cache
def trellis_levels(width: int) -> tuple[np.ndarray, float]:
    """``2 ** (width + 1)`` levels for a unit Gaussian, in turn of the four subsets, and their squared error.

    Lloyd's iterations over draws, symmetric.
    """
    x = jax.random.normal(jax.random.key(0), (SEQUENCES, 128))
    levels = jnp.asarray(gaussian_levels(width + 1))

    @jax.jit
    def assign(levels: jax.Array) -> jax.Array:
        index = jnp.stack([_index(x, levels[subset::4]) * 4 + subset for subset in range(4)], -1)
        path = best_path(jnp.square(x[..., None] - levels[index]), jnp.ones(x.shape, bool))
        return jnp.take_along_axis(index, path[..., None], -1)[..., 0]

    for _ in range(15):
        index = assign(levels).reshape(-1)
        counts = jnp.maximum(jnp.bincount(index, length=len(levels)), 1)
        means = jnp.bincount(index, x.reshape(-1), length=len(levels)) / counts
        levels = (means - means[::-1]) / 2
    return np.asarray(levels), float(jnp.mean(jnp.square(x.reshape(-1) - levels[assign(levels).reshape(-1)])))


def _index(u: jax.Array, levels: jax.Array) -> jax.Array:
    return jnp.searchsorted((levels[1:] + levels[:-1]) / 2, u)


def _round(u: jax.Array, levels: jax.Array) -> jax.Array:
    if len(levels) == 256:
        step = levels[1] - levels[0]
        return (jnp.clip(jnp.round(u / step + 127.5), 0, 255) - 127.5) * step
    return levels[_index(u, levels)]


def trial_cache(model: Any, recipe: Recipe, calibration: Calibration, variant: Variant, context: int) -> Any:
    """An empty cache of ``recipe`` with the quantiser of ``variant``, and what it is expected to cost."""
    tables = calibration.tables_for(recipe)
    cache = CompressedCache.init(
        model.config, recipe, batch_size=1, max_length=context, dtype=jnp.float32, tables=tables
    )
    layers: Any = cache.layers
    names: tuple[StreamName, ...] = ("key", "value")
    streams: list[tuple[StreamName, Stream]] = [(name, getattr(layer, name)) for layer in layers for name in names]
    config: KltConfig = streams[0][1].codec.config
    errors = {
        width: trellis_levels(width)[1] if variant.trellis and width < 8 else klt_layout.distortion(width)
        for width in variant.widths
    }
    kappas = [
        klt_fit.COHERENCE[name, config.page_mean] if variant.kappa is None else variant.kappa[name == "value"]
        for name, _ in streams
    ]
    groups = [_grouped(np.asarray(stream.codec.variances), config, variant) for _, stream in streams]

    def loss(width: int, kappa: float) -> float:
        if width == 0:
            return kappa
        kept = 1.0 - errors[width]
        gain = kept**-variant.gain
        return gain**2 * kept - (gain * kept) ** 2 + kappa * (1.0 - gain * kept) ** 2

    widths = _allocate(groups, kappas, config.bits, variant.widths, loss)
    expected = 0.5 * sum(
        float(np.sum(group * np.vectorize(lambda width, kappa=kappa: loss(int(width), kappa))(each)))
        for group, kappa, each in zip(groups, kappas, widths, strict=True)
    )
    changed = iter([_trial(stream, each, errors, variant) for (_, stream), each in zip(streams, widths, strict=True)])
    return cache.replace_layers(
        tuple(dataclasses.replace(layer, key=next(changed), value=next(changed)) for layer in layers)
    ), expected


def _grouped(variances: np.ndarray, config: KltConfig, variant: Variant) -> np.ndarray:
    units, channels = variances.shape
    size = variant.group or klt_layout.channels_per_group(channels // config.heads_together)
    return variances.astype(np.float64).reshape(units, channels // size, size).sum(axis=2)


def _allocate(groups: Any, kappas: Any, bits: float, widths: tuple[int, ...], loss: Any) -> list[np.ndarray]:
    """``klt_layout.allocate`` with other losses."""
    usual = klt_layout.loss
    klt_layout._hull.cache_clear()
    klt_layout.loss = loss
    try:
        return klt_layout.allocate(groups, kappas, bits, widths)
    finally:
        klt_layout.loss = usual
        klt_layout._hull.cache_clear()


def _trial(stream: Stream, widths: np.ndarray, errors: dict[int, float], variant: Variant) -> Stream:
    held: Klt = stream.codec
    width = np.repeat(widths, held.mean.shape[1] // widths.shape[1], axis=1)
    gain = np.vectorize(lambda each: (1.0 - errors[each]) ** -variant.gain if each else 1.0)(width)
    levels = tuple(
        jnp.asarray(
            trellis_levels(each)[0] if variant.trellis and each < 8 else klt_layout.quantizer_levels(each), jnp.float32
        )
        for each in variant.widths
    )
    codec = Trial(
        config=held.config,
        trellis=variant.trellis,
        widths=variant.widths,
        held=held,
        width=jnp.asarray(width, jnp.int32),
        gain=jnp.asarray(gain, jnp.float32),
        levels=levels,
    )
    _, heads, _, dim = stream.tail.shape
    return Stream.init(
        codec,
        stream.geometry,
        batch_size=1,
        num_kv_heads=heads,
        head_dim=dim,
        dtype=stream.tail.dtype,
        rope=stream.rope,
        frame=stream.frame,
    )


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of every recipe with every variant, printed as they come."""
    calibration = load_calibration(options.calibration)
    model, params = checkpoint.load(options.model)
    calibration.check_model(model.config, params)
    tokens = load_tokens(options.tokens)
    calibration.check_text(tokens)
    texts = jnp.asarray(cut_passages(tokens, options.context, options.passages))
    run = jax.jit(functools.partial(protocols.stream, model, chunk=CHUNK))
    dense = jax.jit(functools.partial(protocols.reference_log_probabilities, model))
    rows = []
    with jax.default_matmul_precision("highest"), one_blas_thread():
        reference = [dense(params, text) for text in texts]
        for name in options.recipe:
            base = None
            for variant in (Variant(), *map(Variant.parse, options.variant)):
                cache, expected = trial_cache(model, Recipe.parse(name), calibration, variant, options.context)
                scores = [run(params, cache, *each) for each in zip(texts, reference, strict=True)]
                kl, agree = (
                    np.stack([np.asarray(getattr(each, field))[WARMUP:] for each in scores])
                    for field in ("kl", "agree")
                )
                base = kl if base is None else base
                rows.append(_row(name, variant.name, kl, agree, base, expected))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def _row(
    recipe: str, variant: str, kl: np.ndarray, agree: np.ndarray, base: np.ndarray, expected: float
) -> dict[str, Any]:
    def blocks(each: np.ndarray) -> np.ndarray:
        whole = each.shape[1] // BLOCK * BLOCK
        return each[:, :whole].reshape(-1, BLOCK).mean(axis=1, dtype=np.float64)

    draws = np.random.default_rng(0).integers(0, blocks(kl).size, (1000, blocks(kl).size))
    ratios = blocks(kl)[draws].mean(axis=1) / blocks(base)[draws].mean(axis=1)
    return {
        "recipe": recipe,
        "variant": variant,
        "kl_mean": float(kl.mean(dtype=np.float64)),
        "expected_kl": expected,
        "top1_agreement": float(agree.mean()),
        "ratio": float(kl.mean(dtype=np.float64) / base.mean(dtype=np.float64)),
        "ratio_ci95": [float(each) for each in np.quantile(ratios, (0.025, 0.975))],
    }


def main() -> None:
    """Measures and, if asked, writes the rows with where they come from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=pathlib.Path, required=True)
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--recipe", action="append", required=True)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    configure(offline=True)
    rows = measure(options)
    if options.json:
        about = {
            "model": pathlib.Path(options.model).name,
            "text": options.tokens.name,
            "context": options.context,
            "passages": options.passages,
            "tokens_scored": options.passages * (options.context - WARMUP - 1),
            "environment": environment(),
        }
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The best recipe for a budget, or the smallest for a loss, from calibration alone.

Every layer's keys and values take the codec whose expected loss plus ``price`` times its bits is least; one price for
all of them makes the whole best (Lagrange). Streams that ``klt`` codes share one budget, which its own allocation
spends. Expected losses are those of ``klt_fit`` for ``klt``, and of ``predicted_loss`` for other codecs.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kakeya_jax import accounting, klt_layout
from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration import klt_fit
from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.predicted_loss import Coordinates, predicted_loss
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.recipe import Recipe, Rule
from kakeya_jax.recipe_text import format_codec
from kakeya_jax.typing import Float, StreamName

OTHERS: tuple[CodecConfig, ...] = (
    *(codec_config("turboquant", bits=bits, static_mean=True) for bits in (2, 3, 4)),
    *(codec_config("kivi", bits=bits) for bits in (2, 4)),
    codec_config("besicovitch"),
    codec_config("lattice", one_scale=True, static_mean=True),
    *(codec_config(name) for name in ("int4", "int8", "identity")),
)
"""What a stream may take besides ``klt``; all close pages of as many tokens as it does, so exact windows are equal."""

LEAST_BITS, MOST_BITS = 0.25, 8.0
"""Of ``KltConfig``."""

_HALVINGS = 80
"""Of the range of prices, on a log axis: to the last digit."""

Where = tuple[int, StreamName]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamChoice:
    """What one stream takes: its codec in text form, all-in bits per value, expected loss in nats for each token."""

    layer: int
    stream: StreamName
    codec: str
    bits: float
    kl: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A recipe and what is expected of it.

    Attributes:
        recipe: for use with the same calibration.
        bits: all-in, for each coded value; calibrated tables apart.
        kl: expected loss, nats for each token.
        streams: what each layer's keys and values take.
    """

    recipe: Recipe
    bits: float
    kl: float
    streams: tuple[StreamChoice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every stream could take; ``options`` makes it once, and searching it is cheap.

    Attributes:
        calibration: what it was made from.
        config: of ``klt``, at any budget.
        others: the codecs besides ``klt`` that take vectors of this model's size.
        where: the streams: ``S`` of them.
        overhead: bits per value of ``klt`` besides its payload.
        group_losses: ``[S, groups, widths]`` expected loss of each channel group at each of ``klt``'s widths, then
        widths: those widths, none first.
        other_bits: ``[S, codecs]`` all-in bits per value of ``others``, and
        other_losses: ``[S, codecs]`` their expected loss.
    """

    calibration: Calibration
    config: KltConfig
    others: tuple[CodecConfig, ...]
    where: tuple[Where, ...]
    overhead: float
    group_losses: np.ndarray
    widths: np.ndarray
    other_bits: np.ndarray
    other_losses: np.ndarray

    def within_bits(self, most: float) -> Found:
        """The recipe of least expected loss with at most ``most`` all-in bits per value.

        Raises:
            ValueError: no recipe is so small.
        """
        dear, cheap = self._prices
        smallest = self._at(dear)
        if smallest.bits > most:
            raise ValueError(
                f"no recipe takes {most:g} bits per value or fewer; the smallest takes {smallest.bits:.3f}"
            )
        point = self._last(lambda each: each.bits <= most, start=dear, end=cheap)
        found = [self._found(each, most) for each in (point, *self._uniform) if each.bits <= most]
        return min(found, key=lambda each: each.kl)

    def within_bytes(self, most: float, context: int) -> Found:
        """As ``within_bits``, for bytes per token of a full cache of ``context`` tokens, its exact window included.

        Raises:
            ValueError: no recipe is so small, or nothing is coded at this context.
        """
        report = accounting.report(_empty_cache(self.calibration, _uniform(self.config), context))
        if not report.coded_values:
            raise ValueError(f"at a context of {context} tokens all of them stay exact; use a longer one")
        exact = sum(stream.sinks + stream.tail for stream in report.streams)
        smallest = (exact + self._at(self._prices[0]).bits * report.coded_values / 8) / context
        if smallest > most:
            raise ValueError(
                f"no recipe takes {most:g} bytes per token or fewer at a context of {context}; the smallest takes "
                f"{smallest:.0f}, {exact / context:.0f} of them for the exact window"
            )
        return self.within_bits(8 * (most * context - exact) / report.coded_values)

    def within_kl(self, most: float) -> Found:
        """The smallest recipe with an expected loss of at most ``most`` nats for each token, to a few channel groups.

        Raises:
            ValueError: no recipe is so good.
        """
        dear, cheap = self._prices
        best = self._at(cheap)
        if best.kl > most:
            raise ValueError(f"no recipe is expected to lose {most:g} nats or fewer; the best loses {best.kl:.1e}")
        point, beyond = self._neighbours(lambda each: each.kl <= most, start=cheap, end=dear)
        found = self._found(point, 0.0)
        for each in (beyond, point):
            found = self._filled(each, found, most, beyond.bits)
        smaller = [each for each in self._uniform if each.kl <= most and each.bits < found.bits]
        return self._found(min(smaller, key=lambda each: each.bits), 0.0) if smaller else found

    @functools.cached_property
    def _uniform(self) -> list["_Point"]:
        """One codec for all: with few streams, a price can jump over it."""
        klt = self.group_losses[:, :, 0].sum()
        bits = [self.overhead + LEAST_BITS, *self.other_bits.mean(axis=0)]
        return [
            _Point(codec=np.full(len(self.where), index), klt_bits=LEAST_BITS, bits=float(each), kl=float(kl))
            for index, (each, kl) in enumerate(zip(bits, [klt, *self.other_losses.sum(axis=0)], strict=True))
        ]

    @functools.cached_property
    def _prices(self) -> tuple[float, float]:
        """Nats for a bit per value: so many that nobody buys any, and so few that everybody buys all."""
        largest = max(float(self.group_losses.sum()), np.finfo(np.float64).tiny * 1e40)
        return 1e3 * largest, 1e-24 * largest

    def _at(self, price: float) -> "_Point":
        """What is best at a price in nats for each bit per value of one stream."""
        groups = self.group_losses.shape[1]
        chosen = np.argmin(self.group_losses + price / groups * self.widths, axis=2)
        payload = self.widths[chosen].mean(axis=1)
        losses = np.take_along_axis(self.group_losses, chosen[..., None], axis=2).sum(axis=(1, 2))
        bits = np.column_stack([payload + self.overhead, self.other_bits])
        kl = np.column_stack([losses, self.other_losses])
        codec = np.argmin(kl + price * bits, axis=1)  # the first of equals: klt
        of_klt = codec == 0
        mean = float(payload[of_klt].mean()) if of_klt.any() else 0.0
        row = np.arange(len(codec))
        extra = max(LEAST_BITS - mean, 0.0) * of_klt.mean()
        return _Point(
            codec=codec,
            klt_bits=float(np.clip(mean, LEAST_BITS, MOST_BITS)),
            bits=float(bits[row, codec].mean() + extra),
            kl=float(kl[row, codec].sum()),
        )

    def _last(self, fits: Callable[["_Point"], bool], *, start: float, end: float) -> "_Point":
        """The point nearest to the price ``end`` that fits, where that of ``start`` does."""
        return self._neighbours(fits, start=start, end=end)[0]

    def _neighbours(self, fits: Callable[["_Point"], bool], *, start: float, end: float) -> tuple["_Point", "_Point"]:
        """That point, and the first one beyond it, which does not fit unless both are the point of ``end``."""
        if fits(self._at(end)):
            return self._at(end), self._at(end)
        for _ in range(_HALVINGS):
            middle = float(np.sqrt(start * end))
            start, end = (middle, end) if fits(self._at(middle)) else (start, middle)
        return self._at(start), self._at(end)

    def _filled(self, point: "_Point", found: Found, most: float, least_bits: float) -> Found:
        """``found``, or what loses at most ``most`` in fewer bits: the codecs of ``point``, other bits for ``klt``.

        No price leads there: from one point to the next a whole stream may change its codec.
        """
        saved = (point.klt_bits - LEAST_BITS) * float(np.mean(point.codec == 0))
        point = dataclasses.replace(point, klt_bits=LEAST_BITS, bits=point.bits - saved)
        bit_of_a_group = 1 / self.group_losses[:, :, 0].size
        low, high = least_bits, found.bits
        while high - low > bit_of_a_group:
            middle = (low + high) / 2
            each = self._found(point, middle)
            if each.kl <= most and each.bits < found.bits:
                found, high = each, min(middle, each.bits)
            else:
                low = middle
        return found

    def _found(self, point: "_Point", most: float) -> Found:
        """The recipe of a point; what it leaves of ``most`` bits goes to ``klt``."""
        config = dataclasses.replace(self.config, bits=point.klt_bits)
        of_klt = float(np.mean(point.codec == 0))
        if of_klt and most > point.bits:
            bits = min(point.klt_bits + (most - point.bits) / of_klt, MOST_BITS)
            config = dataclasses.replace(config, bits=bits)
        codecs = (config, *self.others)
        chosen = {where: codecs[index] for where, index in zip(self.where, point.codec, strict=True)}
        recipe = _recipe(chosen, self.calibration.shape.num_layers)
        tables = self.calibration.tables_for(recipe)
        streams = []
        for row, (where, codec) in enumerate(chosen.items()):
            if point.codec[row] == 0:
                table = tables[where]
                bits = self.overhead + float(np.mean(table["widths"]))
                spent = (where[1], np.asarray(table["variances"]), np.asarray(table["widths"]))
                kl = klt_fit.predicted_kl(config, [spent])
            else:
                column = point.codec[row] - 1
                bits, kl = float(self.other_bits[row, column]), float(self.other_losses[row, column])
            streams.append(StreamChoice(layer=where[0], stream=where[1], codec=format_codec(codec), bits=bits, kl=kl))
        return Found(
            recipe=recipe,
            bits=float(np.mean([each.bits for each in streams])),
            kl=sum(each.kl for each in streams),
            streams=tuple(streams),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Point:
    """A choice for every stream: 0 for ``klt``, else one more than the place in ``Options.others``."""

    codec: np.ndarray
    klt_bits: float
    bits: float
    kl: float


def options(calibration: Calibration, *, form: Literal["fast", "quality"] = "fast", heads_together: int = 1) -> Options:
    """Predicts what every codec costs on every stream: seconds of compilation, then little.

    Args:
        calibration: of the model.
        form: of ``klt``.
        heads_together: of ``klt``: 2 for that of ``klt-pairs``.

    Raises:
        UnservedError: heads cannot be coded together: their number, or what the calibration has, does not allow it.
    """
    config = KltConfig(form=form, heads_together=heads_together)
    where: tuple[Where, ...] = tuple(
        (layer, name) for layer in range(calibration.shape.num_layers) for name in ("key", "value")
    )
    report = accounting.report(_empty_cache(calibration, _uniform(config)))
    tables = calibration.tables_for(_uniform(config))
    widths = (0, *config.widths)
    coordinates = _coordinates(calibration, where)
    others = tuple(codec for codec in OTHERS if _fits(codec, calibration.shape.head_dim))
    bits, losses = np.zeros((2, len(where), len(others)))
    for column, codec in enumerate(others):
        cache = _empty_cache(calibration, _uniform(codec))
        bits[:, column] = [
            8 * (stream.payload + stream.side) / stream.coded_values for stream in accounting.report(cache).streams
        ]
        losses[:, column] = [
            predicted_loss(getattr(cache.layers[layer], name), name, coordinates[layer, name]) for layer, name in where
        ]
    return Options(
        calibration=calibration,
        config=config,
        others=others,
        where=where,
        overhead=report.all_in_bits_per_value - report.payload_bits_per_value,
        group_losses=np.stack([_group_losses(config, name, tables[layer, name], widths) for layer, name in where]),
        widths=np.asarray(widths),
        other_bits=bits,
        other_losses=losses,
    )


def _group_losses(
    config: KltConfig, name: StreamName, tables: Mapping[str, Any], widths: Sequence[int]
) -> Float[np.ndarray, "groups widths"]:
    """As ``klt_fit.predicted_kl`` counts them."""
    variances = np.asarray(tables["variances"], np.float64)
    groups = variances.reshape(-1, klt_layout.channels_per_group(variances.shape[1])).sum(axis=1)
    coherence = klt_fit.COHERENCE[name, config.page_mean]
    return 0.5 * groups[:, None] * np.array([klt_layout.loss(width, coherence) for width in widths])


def _coordinates(calibration: Calibration, where: Sequence[Where]) -> dict[Where, Coordinates]:
    """Keys before their rotary embedding: those of the quality form, whatever form is searched."""
    tables = calibration.tables_for(_uniform(KltConfig(form="quality")))
    return {each: Coordinates.of(tables[each], calibration.rope_frequencies, calibration.rope_factor) for each in where}


def _uniform(codec: CodecConfig) -> Recipe:
    return Recipe(rules=(Rule(codec=codec),))


def _fits(codec: CodecConfig, head_dim: int) -> bool:
    """Whether a codec takes vectors of this size: groups must divide them."""
    try:
        for name in ("key", "value"):
            codec.build(head_dim, stream=name)
    except ValueError:
        return False
    return True


def _empty_cache(calibration: Calibration, recipe: Recipe, context: int | None = None) -> CompressedCache:
    """A cache of one row; without a context, of one coded page."""
    plan = recipe.plan(calibration.shape.num_layers)[0]
    return CompressedCache.init(
        calibration.shape,
        recipe,
        batch_size=1,
        max_length=plan.sinks + plan.recent + plan.page if context is None else context,
        tables=calibration.tables_for(recipe),
    )


def _recipe(chosen: Mapping[Where, CodecConfig], num_layers: int) -> Recipe:
    """One rule for the codec that most streams take, and before it one for each of the others."""
    layers: dict[CodecConfig, dict[str, tuple[int, ...]]] = defaultdict(lambda: {"key": (), "value": ()})
    for (layer, name), codec in chosen.items():
        layers[codec][name] += (layer,)
    ordered = sorted(layers, key=lambda codec: sum(map(len, layers[codec].values())))
    rules: list[Rule] = []
    for codec in ordered[:-1]:
        of = layers[codec]
        streams = {"both": of["key"]} if of["key"] == of["value"] else of
        rules += [
            Rule(codec=codec, stream=stream, layers=None if len(where) == num_layers else where)
            for stream, where in streams.items()
            if where
        ]
    return Recipe(rules=(*rules, Rule(codec=ordered[-1])))

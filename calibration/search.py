"""The best recipe for a budget, or the smallest for a loss, from calibration alone.

Every layer's keys and values take the codec whose expected loss plus ``price`` times its bits is least; one price for
all of them makes the whole best (Lagrange). Streams that one form of ``klt`` codes share one budget, which its own
allocation spends. Expected losses are those of ``klt_fit`` for ``klt``, and of ``predicted_loss`` for other codecs, for
the recipe's exact window, which the calibration must have been made for.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kakeya_jax import accounting, klt_layout
from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration import klt_fit
from kakeya_jax.calibration.artifact import Calibration, ExactTokens
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

FORMS: Mapping[str, KltConfig] = {
    "fast": KltConfig(),
    "pairs": KltConfig(heads_together=2),
    "quality": KltConfig(form="quality"),
    "quality-pairs": KltConfig(form="quality", heads_together=2),
    "trellis": KltConfig(form="quality", trellis=True),
    "trellis-pairs": KltConfig(form="quality", trellis=True, heads_together=2),
}
"""Of ``klt``, at any budget."""

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
class FormLosses:
    """What one form of ``klt`` costs at each of its widths.

    Attributes:
        config: at any budget.
        overhead: bits per value besides its payload.
        group_losses: ``[S, groups, widths]`` expected loss of each channel group of each stream.
        widths: the widths, none first.
    """

    config: KltConfig
    overhead: float
    group_losses: np.ndarray
    widths: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every stream could take; ``options`` makes it once, and searching it is cheap.

    Attributes:
        calibration: what it was made from.
        window: exact tokens of the recipe.
        forms: of ``klt``.
        others: the codecs besides ``klt`` that take vectors of this model's size.
        where: the streams: ``S`` of them.
        other_bits: ``[S, codecs]`` all-in bits per value of ``others``, and
        other_losses: ``[S, codecs]`` their expected loss.
    """

    calibration: Calibration
    window: ExactTokens
    forms: tuple[FormLosses, ...]
    others: tuple[CodecConfig, ...]
    where: tuple[Where, ...]
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
        uniform = _uniform(self.forms[0].config, self.window)
        report = accounting.report(_empty_cache(self.calibration, uniform, context))
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
        found = self._found(point)
        for each in (beyond, point):
            found = self._filled(each, found, most, beyond.bits)
        smaller = [each for each in self._uniform if each.kl <= most and each.bits < found.bits]
        return self._found(min(smaller, key=lambda each: each.bits)) if smaller else found

    @functools.cached_property
    def _uniform(self) -> list["_Point"]:
        """One codec for all: with few streams, a price can jump over it."""
        bits = [*(form.overhead + LEAST_BITS for form in self.forms), *self.other_bits.mean(axis=0)]
        losses = [*(form.group_losses[:, :, 0].sum() for form in self.forms), *self.other_losses.sum(axis=0)]
        return [
            _Point(
                codec=np.full(len(self.where), index),
                klt_bits=(LEAST_BITS,) * len(self.forms),
                bits=float(each),
                kl=float(kl),
            )
            for index, (each, kl) in enumerate(zip(bits, losses, strict=True))
        ]

    @functools.cached_property
    def _prices(self) -> tuple[float, float]:
        """Nats for a bit per value: so many that nobody buys any, and so few that everybody buys all."""
        total = max(float(form.group_losses.sum()) for form in self.forms)
        largest = max(total, np.finfo(np.float64).tiny * 1e40)
        return 1e3 * largest, 1e-24 * largest

    def _at(self, price: float) -> "_Point":
        """What is best at a price in nats for each bit per value of one stream."""
        payloads, losses = [], []
        for form in self.forms:
            groups = form.group_losses.shape[1]
            chosen = np.argmin(form.group_losses + price / groups * form.widths, axis=2)
            payloads.append(form.widths[chosen].mean(axis=1))
            losses.append(np.take_along_axis(form.group_losses, chosen[..., None], axis=2).sum(axis=(1, 2)))
        of_forms = [payload + form.overhead for payload, form in zip(payloads, self.forms, strict=True)]
        bits = np.column_stack([*of_forms, self.other_bits])
        kl = np.column_stack([*losses, self.other_losses])
        codec = np.argmin(kl + price * bits, axis=1)  # the first of equals: klt
        means = [
            float(payload[codec == index].mean()) if np.any(codec == index) else 0.0
            for index, payload in enumerate(payloads)
        ]
        row = np.arange(len(codec))
        extra = sum(max(LEAST_BITS - mean, 0.0) * float(np.mean(codec == index)) for index, mean in enumerate(means))
        return _Point(
            codec=codec,
            klt_bits=tuple(float(np.clip(mean, LEAST_BITS, MOST_BITS)) for mean in means),
            bits=float(bits[row, codec].mean()) + extra,
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
        bit_of_a_group = 1 / max(form.group_losses[:, :, 0].size for form in self.forms)
        low, high = least_bits, found.bits
        while high - low > bit_of_a_group:
            middle = (low + high) / 2
            each = self._found(point, middle)
            if each.kl <= most and each.bits < found.bits:
                found, high = each, min(middle, each.bits)
            else:
                low = middle
        return found

    def _found(self, point: "_Point", most: float | None = None) -> Found:
        """The recipe of a point; in each form ``klt`` takes as many bits more, or fewer, as make it ``most`` in all."""
        of_klt = float(np.mean(point.codec < len(self.forms)))
        more = (most - point.bits) / of_klt if of_klt and most is not None else 0.0
        codecs: tuple[CodecConfig, ...] = (
            *(
                dataclasses.replace(form.config, bits=float(np.clip(bits + more, LEAST_BITS, MOST_BITS)))
                for form, bits in zip(self.forms, point.klt_bits, strict=True)
            ),
            *self.others,
        )
        chosen = {where: codecs[index] for where, index in zip(self.where, point.codec, strict=True)}
        recipe = _recipe(chosen, self.calibration.shape.num_layers, self.window)
        tables = self.calibration.tables_for(recipe)
        streams = []
        for row, (where, codec) in enumerate(chosen.items()):
            if isinstance(codec, KltConfig):
                table = tables[where]
                bits = self.forms[point.codec[row]].overhead + float(np.mean(table["widths"]))
                spent = (where[1], np.asarray(table["variances"]), np.asarray(table["widths"]))
                kl = klt_fit.predicted_kl(codec, [spent])
            else:
                column = point.codec[row] - len(self.forms)
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
    """A choice for every stream: its place in ``Options.forms``, followed by ``Options.others``; bits of each form."""

    codec: np.ndarray
    klt_bits: tuple[float, ...]
    bits: float
    kl: float


def options(
    calibration: Calibration, *, forms: Sequence[str] = ("fast",), window: ExactTokens | None = None
) -> Options:
    """Predicts what every codec costs on every stream: seconds of compilation, then little.

    Args:
        calibration: of the model.
        forms: of ``klt`` that a stream may take: names in ``FORMS``. Forms that decode alike should stand together:
            ``quality`` loses less than ``fast`` at any budget, and is no faster than decoding; ``trellis`` less still.
        window: exact tokens of the recipe; by default those that the calibration was made for, the first of them.

    Raises:
        ValueError: no or unknown forms, or a window that the calibration was not made for.
        UnservedError: heads cannot be coded together: their number, or what the calibration has, does not allow it.
    """
    if not forms or set(forms) - set(FORMS):
        raise ValueError(f"forms={list(forms)} of klt must be some of {', '.join(FORMS)}")
    chosen = calibration.exact[0] if window is None else window
    _check_window(calibration, chosen)
    where: tuple[Where, ...] = tuple(
        (layer, name) for layer in range(calibration.shape.num_layers) for name in ("key", "value")
    )
    coordinates = _coordinates(calibration, where, chosen)
    others = tuple(codec for codec in OTHERS if _fits(codec, calibration.shape.head_dim))
    bits, losses = np.zeros((2, len(where), len(others)))
    for column, codec in enumerate(others):
        cache = _empty_cache(calibration, _uniform(codec, chosen))
        bits[:, column] = [
            8 * (stream.payload + stream.side) / stream.coded_values for stream in accounting.report(cache).streams
        ]
        losses[:, column] = [
            predicted_loss(getattr(cache.layers[layer], name), name, coordinates[layer, name]) for layer, name in where
        ]
    return Options(
        calibration=calibration,
        window=chosen,
        forms=tuple(_form_losses(calibration, FORMS[form], where, chosen) for form in dict.fromkeys(forms)),
        others=others,
        where=where,
        other_bits=bits,
        other_losses=losses,
    )


def _form_losses(
    calibration: Calibration, config: KltConfig, where: Sequence[Where], window: ExactTokens
) -> FormLosses:
    uniform = _uniform(config, window)
    report = accounting.report(_empty_cache(calibration, uniform))
    tables = calibration.tables_for(uniform)
    widths = (0, *config.widths)
    return FormLosses(
        config=config,
        overhead=report.all_in_bits_per_value - report.payload_bits_per_value,
        group_losses=np.stack([_group_losses(config, name, tables[layer, name], widths) for layer, name in where]),
        widths=np.asarray(widths),
    )


def _group_losses(
    config: KltConfig, name: StreamName, tables: Mapping[str, Any], widths: Sequence[int]
) -> Float[np.ndarray, "groups widths"]:
    """As ``klt_fit.predicted_kl`` counts them."""
    groups = klt_fit.group_variances(config, np.asarray(tables["variances"])).reshape(-1)
    coherence = klt_fit.COHERENCE[name, config.page_mean]
    losses = np.array([klt_layout.loss(width, coherence, config.quantizer) for width in widths])
    return 0.5 * groups[:, None] * losses


def _check_window(calibration: Calibration, window: ExactTokens) -> None:
    page = KltConfig().block_size
    if window.page != page:
        raise ValueError(f"klt closes pages of {page} tokens; a recipe cannot keep {window} exact")
    if window not in calibration.exact:
        known = "; ".join(map(str, calibration.exact))
        raise ValueError(
            f"this calibration was not made for {window} exact, but for {known}; calibrate with --window "
            f"{window.sinks}:{window.recent}, or search for a window it knows"
        )


def _coordinates(calibration: Calibration, where: Sequence[Where], window: ExactTokens) -> dict[Where, Coordinates]:
    """Keys before their rotary embedding: those of the quality form, whatever form is searched."""
    tables = calibration.tables_for(_uniform(KltConfig(form="quality"), window))
    return {each: Coordinates.of(tables[each], calibration.rope_frequencies, calibration.rope_factor) for each in where}


def _uniform(codec: CodecConfig, window: ExactTokens) -> Recipe:
    return Recipe(rules=(Rule(codec=codec),), sinks=window.sinks, recent=window.recent)


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


def _recipe(chosen: Mapping[Where, CodecConfig], num_layers: int, window: ExactTokens) -> Recipe:
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
    return Recipe(rules=(*rules, Rule(codec=ordered[-1])), sinks=window.sinks, recent=window.recent)

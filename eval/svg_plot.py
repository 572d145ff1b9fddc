"""KL against bits as an SVG picture for a page: no script, no font, colours by CSS classes of the page.

Both axes are logarithmic; down and left is better. A point's shape tells its exact window, its colour the verdict. The
line joins the points of one window that no other point of that window beats in both directions.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from kakeya_jax.eval.table import format_kl

WIDE, NARROW = (760, 470), (364, 440)
"""Sizes in pixels: for a page, and for a phone, where the first would be a third outside or too small to read."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 46
_BITS = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 12, 16)
_FLOOR = 1e-8
"""KL below this is rounding."""

_CHARACTER, _LINE = 6.1, 13.0
"""Size of the labels' text, pixels of the picture."""

_TICK = 20.0
"""Least room between the numbers of two ticks."""

SHAPES = ("circle", "square", "triangle", "wedge", "arrow")
"""Of the windows, in the order in which they occur; rows of others are diamonds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One row.

    Attributes:
        label: its recipe.
        bits: all-in bits per value.
        kl: mean KL, nats.
        interval: 95 % interval of it, if there is one.
        style: CSS class: ``accept``, ``marginal``, ``reject``, ``other`` or ``peer``.
        series: which window it belongs to; ``None`` for rows of others, which no line joins.
    """

    label: str
    bits: float
    kl: float
    style: str
    series: int | None
    interval: tuple[float, float] | None = None


def svg_plots(points: Sequence[Point], *, description: str) -> str:
    """The picture in both sizes, of which the page's CSS shows one; see ``svg_plot``."""
    sizes = {"wide": WIDE, "narrow": NARROW}
    plots = [svg_plot(points, description=description, size=size, kind=kind) for kind, size in sizes.items()]
    return "\n".join(filter(None, plots))


def svg_plot(points: Sequence[Point], *, description: str, size: tuple[int, int] = WIDE, kind: str = "wide") -> str:
    """The picture as an ``<svg>`` element; empty text if no point has both bits and a finite KL.

    Args:
        points: what to draw; those without a place are left out.
        description: what the picture shows, for those who cannot see it.
        size: width and height.
        kind: CSS class that goes with the size.
    """
    drawn = [each for each in points if has_place(each)]
    if not drawn:
        return ""
    scale = _Scale.around(drawn, size)
    parts = [
        f'<svg class="plot {kind}" viewBox="0 0 {size[0]} {size[1]}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(description)}</title>",
        *_grid(scale),
        *itertools.chain.from_iterable(_front(drawn, series, scale) for series in _series(drawn)),
        *(_interval(each, scale) for each in drawn if each.interval is not None),
        *(_mark(each, scale) for each in drawn),
        *_labels(drawn, scale),
        "</svg>",
    ]
    return "\n".join(parts)


def has_place(point: Point) -> bool:
    """Whether a point can be drawn: it has coded values and a finite KL."""
    return math.isfinite(point.kl) and math.isfinite(point.bits) and point.bits > 0


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both bits and KL, by rising bits."""
    front: list[Point] = []
    for each in sorted(points, key=lambda point: (point.bits, point.kl)):
        if not front or each.kl < front[-1].kl:
            front.append(each)
    return front


def shape_mark(shape: str, x: float, y: float, style: str, size: float = 4.5) -> str:
    """An SVG element of a shape around a place."""
    kind = f'class="mark {style}"'
    if shape == "circle":
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
        "wedge": ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
        "arrow": ((1.2, 0), (-0.9, 1.15), (-0.9, -1.15)),
    }[shape]
    at = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon {kind} points="{at}"'


@dataclasses.dataclass(frozen=True)
class _Scale:
    low_bits: float
    high_bits: float
    low_kl: float
    high_kl: float
    width: int
    height: int

    @classmethod
    def around(cls, points: Sequence[Point], size: tuple[int, int]) -> "_Scale":
        bits = [each.bits for each in points]
        heights = [max(end, _FLOOR) for each in points for end in (each.kl, *(each.interval or ()))]
        return cls(min(bits) * 0.88, max(bits) * 1.35, min(heights) * 0.6, max(heights) * 1.7, *size)

    def x(self, bits: float) -> float:
        share = math.log(bits / self.low_bits) / math.log(self.high_bits / self.low_bits)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, kl: float) -> float:
        share = math.log(max(kl, _FLOOR) / self.low_kl) / math.log(self.high_kl / self.low_kl)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def _grid(scale: _Scale) -> Iterable[str]:
    bottom, right = scale.height - _BOTTOM, scale.width - _RIGHT
    last = -math.inf
    for bits in _BITS:
        if scale.low_bits <= bits <= scale.high_bits:
            x = scale.x(bits)
            yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
            if x - last > _TICK:
                last = x
                yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{bits:g}</text>'
    for power in range(math.ceil(math.log10(scale.low_kl)), math.floor(math.log10(scale.high_kl)) + 1):
        y = scale.y(10.0**power)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
    yield f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}"/>'
    middle = (_LEFT + right) / 2
    yield (
        f'<text class="axis" x="{middle}" y="{scale.height - 8}" text-anchor="middle">'
        "bits per coded value, all-in</text>"
    )
    yield (
        f'<text class="axis" transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "mean KL, nats</text>"
    )


def _series(points: Sequence[Point]) -> list[int]:
    return sorted({each.series for each in points if each.series is not None})


def _front(points: Sequence[Point], series: int, scale: _Scale) -> list[str]:
    front = pareto_front(each for each in points if each.series == series)
    if len(front) < 2:
        return []
    at = " ".join(f"{scale.x(each.bits):.1f},{scale.y(each.kl):.1f}" for each in front)
    return [f'<polyline class="front series{series % len(SHAPES)}" points="{at}"/>']


def _interval(point: Point, scale: _Scale) -> str:
    assert point.interval is not None
    low, high = point.interval
    x, top, bottom = scale.x(point.bits), scale.y(high), scale.y(low)
    return f'<line class="interval {point.style}" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>'


def _mark(point: Point, scale: _Scale) -> str:
    shape = "diamond" if point.series is None else SHAPES[point.series % len(SHAPES)]
    element = shape_mark(shape, scale.x(point.bits), scale.y(point.kl), point.style)
    name = element[1:].split(" ")[0]
    told = escape(f"{point.label}: {point.bits:.3f} bits, KL {format_kl(point.kl)}")
    return f"{element}><title>{told}</title></{name}>"


def _labels(points: Sequence[Point], scale: _Scale) -> Iterable[str]:
    """Names beside points where they cover nothing: those on a front first; the others are in the points' titles."""
    best = {id(each) for series in _series(points) for each in pareto_front(p for p in points if p.series == series)}
    taken = [
        (scale.x(each.bits) - 5, scale.y(each.kl) - 5, scale.x(each.bits) + 5, scale.y(each.kl) + 5) for each in points
    ]
    longest = min(26, scale.width // 19)
    for each in sorted(points, key=lambda point: (id(point) not in best, point.kl)):
        text = each.label if len(each.label) <= longest else each.label[: longest - 1] + "…"
        width = _CHARACTER * len(text)
        x, y = scale.x(each.bits), scale.y(each.kl)
        for dy, right in itertools.product((0, 11, -11), (True, False)):
            left = x + 8 if right else x - 8 - width
            box = (left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2)
            inside = (
                box[0] > _LEFT + 2
                and box[2] < scale.width - _RIGHT - 2
                and box[1] > _TOP
                and box[3] < scale.height - _BOTTOM
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield f'<text class="label" x="{left:.1f}" y="{y + dy + 4:.1f}">{escape(text)}</text>'
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

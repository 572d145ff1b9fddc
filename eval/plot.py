"""The one picture: KL against bits, one point for each recipe."""

import math
import pathlib
from typing import Any

from kakeya_jax.eval.results import EvalResult, Row
from kakeya_jax.eval.table import heading

_COLORS = {"ACCEPT": "tab:green", "MARGINAL": "tab:orange", "REJECT": "tab:red"}
_SHAPES = "os^Dv"
_PLACES = [(x, y) for y in (0, 9, -9, 18, -18, 27, -27, 36, -36, 48, -48) for x in (9, -9)]
"""Offsets of labels in points, nearest first."""

_FLOOR = 1e-8
"""KL below this is rounding and is drawn here, because the axis is logarithmic."""


def save_plot(result: EvalResult, path: str | pathlib.Path) -> None:
    """Writes a PNG of mean KL against all-in bits per value, both logarithmic; down and left is better.

    Rows without coded values, or whose KL is no finite number, have no place on it; a note below names them.

    Args:
        result: one point for each row.
        path: ``.png``, or another ending that matplotlib knows; folders are made.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no row is left to draw, or matplotlib does not know the ending.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in result.rows if math.isfinite(row.kl_mean) and math.isfinite(row.all_in_bits)]
    if not rows:
        raise ValueError(f"no plot {path}: no recipe has both coded values and a finite KL; use a longer --context")
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, rows)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [1, 2, 3, 4, 5, 6, 8, 12, 16]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.85 * min([2, *(row.all_in_bits for row in rows)]), 22)
    axes.margins(y=0.12)
    axes.set_xlabel("bits per value, all-in (scales, norms and bases included; exact window and tables not)")
    axes.set_ylabel("mean KL(reference || candidate), nats")
    axes.set_title(_wrap(heading(result)), fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize=8)
    _label(figure, axes, rows)
    note = "\n".join(text for text in (result.note, left_out_note(result, rows)) if text)
    if note:
        figure.supxlabel(note, fontsize=8, color="dimgray")
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def check_plot(path: str | pathlib.Path) -> None:
    """Checks, before there is anything to draw, that a plot could be written under this name.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not know the ending.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ImportError("plots need matplotlib; install it with: pip install 'kakeya-jax[report]'") from None
    ending = pathlib.Path(path).suffix.removeprefix(".").lower()
    known = FigureCanvasAgg.get_supported_filetypes()
    if ending not in known:
        raise ValueError(f"plot {path} must end in .png, or in one of .{', .'.join(sorted(set(known) - {'png'}))}")


def left_out_note(result: EvalResult, drawn: list[Row]) -> str:
    """Which rows are not drawn; empty if all are."""
    missing = [row.recipe for row in result.rows if row not in drawn]
    return f"not drawn, without coded values or a finite KL: {', '.join(missing)}" if missing else ""


def _draw(axes: Any, rows: list[Row]) -> None:
    """Points with their intervals: colour tells the verdict, shape the exact window."""
    windows = list(dict.fromkeys(row.window for row in rows))
    for group in dict.fromkeys((row.verdict, row.window) for row in rows):
        verdict, window = group
        members = [row for row in rows if (row.verdict, row.window) == group]
        height = [_height(row) for row in members]
        intervals = [row.kl_ci95 or (y, y) for row, y in zip(members, height, strict=True)]
        below = [max(y - max(low, _FLOOR), 0.0) for (low, _), y in zip(intervals, height, strict=True)]
        above = [max(high - y, 0.0) for (_, high), y in zip(intervals, height, strict=True)]
        axes.errorbar(
            [row.all_in_bits for row in members],
            height,
            yerr=[below, above],
            fmt=_SHAPES[windows.index(window) % len(_SHAPES)],
            markersize=5,
            capsize=2,
            linewidth=1,
            color=_COLORS.get(verdict, "tab:gray"),
            label=f"{verdict}, exact {window[0]}+{window[1]}-{window[2]}",
        )


def _label(figure: Any, axes: Any, rows: list[Row]) -> None:
    """Names every point, in the nearest place around it where the name covers no point and no other name."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    points = {row.recipe: axes.transData.transform((row.all_in_bits, _height(row))) for row in rows}
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points.values()]
    frame = axes.get_window_extent(renderer)
    for row in sorted(rows, key=_height):
        for x, y in _PLACES:
            label = axes.annotate(
                row.recipe,
                (row.all_in_bits, _height(row)),
                xytext=(x, y),
                textcoords="offset points",
                ha="left" if x > 0 else "right",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.5} if abs(y) > 12 else None,
            )
            box = label.get_window_extent(renderer)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1
            if inside and not any(_text_box(label, renderer).overlaps(other) for other in taken):
                break
            label.remove()
        else:
            label = axes.annotate(row.recipe, (row.all_in_bits, _height(row)), fontsize=8)
        taken.append(_text_box(label, renderer))


def _text_box(label: Any, renderer: Any) -> Any:
    """The box of the words alone; an annotation's own box includes its line."""
    from matplotlib.text import Text

    return Text.get_window_extent(label, renderer)


def _height(row: Row) -> float:
    return max(row.kl_mean, _FLOOR)


def _wrap(text: str) -> str:
    head, _, tail = text.partition(": ")
    return f"{head}\n{tail}"

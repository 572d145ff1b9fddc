"""The one picture: KL against bits, one point for each recipe."""

import pathlib
from typing import Any

from kakeya_jax.eval.results import EvalResult, Row
from kakeya_jax.eval.table import heading

_COLORS = {"ACCEPT": "tab:green", "MARGINAL": "tab:orange", "REJECT": "tab:red"}
_FLOOR = 1e-8
"""KL below this is rounding and is drawn here, because the axis is logarithmic."""


def save_plot(result: EvalResult, path: str | pathlib.Path) -> None:
    """Writes a PNG of mean KL against all-in bits per value, both logarithmic; down and left is better.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots need matplotlib; install it with: pip install 'kakeya-jax[report]'"
        ) from None
    rows = [row for row in result.rows if row.kl_mean == row.kl_mean]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for verdict in dict.fromkeys(row.verdict for row in rows):
        _draw(axes, [row for row in rows if row.verdict == verdict], verdict)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [1, 2, 3, 4, 5, 6, 8, 12, 16]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.85 * min([2, *(row.all_in_bits for row in rows)]), 22)
    axes.margins(y=0.12)
    axes.set_xlabel("bits per value, all-in (scales, norms, bases and tables included; exact window not)")
    axes.set_ylabel("mean KL(reference || candidate), nats")
    axes.set_title(_wrap(heading(result)), fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(title="verdict", loc="upper right", fontsize=8)
    _label(figure, axes, rows)
    if result.note:
        figure.supxlabel(result.note, fontsize=8, color="dimgray")
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw(axes: Any, rows: list[Row], verdict: str) -> None:
    height = [_height(row) for row in rows]
    low = [
        y - max(row.kl_ci95[0], _FLOOR) if row.kl_ci95 else 0.0 for row, y in zip(rows, height, strict=True)
    ]
    high = [row.kl_ci95[1] - y if row.kl_ci95 else 0.0 for row, y in zip(rows, height, strict=True)]
    error = [[max(value, 0.0) for value in side] for side in (low, high)]
    axes.errorbar(
        [row.all_in_bits for row in rows],
        height,
        yerr=error,
        fmt="o",
        markersize=5,
        capsize=2,
        linewidth=1,
        color=_COLORS.get(verdict, "tab:gray"),
        label=verdict,
    )


def _label(figure: Any, axes: Any, rows: list[Row]) -> None:
    """Names every point, in the first place around it where the name covers no other."""
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    taken = []
    places = [(6, 4, "left"), (6, -10, "left"), (-6, 4, "right"), (-6, -10, "right")]
    places += [(6, step, "left") for step in (14, -20, 24, -30, 34, -40)]
    for row in sorted(rows, key=_height):
        for x, y, side in places:
            label = axes.annotate(
                row.recipe,
                (row.all_in_bits, _height(row)),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                fontsize=8,
            )
            box = label.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            continue
        taken.append(box)


def _height(row: Row) -> float:
    return max(row.kl_mean, _FLOOR)


def _wrap(text: str) -> str:
    head, _, tail = text.partition(": ")
    return f"{head}\n{tail}"

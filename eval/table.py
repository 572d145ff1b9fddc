"""Results as tables: in the terminal and as Markdown."""

import rich.box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.eval.results import EvalResult, Row

_COLUMNS: tuple[str, ...] = (
    "recipe",
    "bits/\nvalue\npayload",
    "bits/\nvalue\nall-in",
    "bytes/\ntoken",
    "ratio",
    "ppl",
    "dPPL %\n[95 %]",
    "KL mean",
    "KL p99",
    "top-1\n%",
    "exact\nwindow",
    "encode\ns",
    "verdict",
)
_DISPENSABLE = ("encode\ns", "KL p99", "bits/\nvalue\npayload", "bytes/\ntoken", "ppl", "ratio")
"""Columns left out of narrow terminals, in this order."""

_LEAST_WIDTH = {"recipe": 12, "dPPL %\n[95 %]": 13}
"""The columns that may fold, and how far."""

_STYLES = {"ACCEPT": "green", "MARGINAL": "yellow", "REJECT": "red"}


def make_console(*, stderr: bool = False) -> Console:
    """A console that never folds tables when its output goes to a file."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=160)


def result_table(result: EvalResult, width: int) -> Group:
    """The terminal form: a heading, one line for each recipe, and what the numbers mean.

    In a terminal of less than about 150 columns (``width``), less important columns are left out.
    """
    table = Table(box=rich.box.SIMPLE_HEAD, title=heading(result), title_justify="left", pad_edge=False)
    cells = [dict(zip(_COLUMNS, cells_of(row), strict=True)) for row in result.rows]
    shown = _fitting_columns(cells, width)
    for name in shown:
        table.add_column(
            name,
            justify="left" if name in ("recipe", "verdict") else "right",
            no_wrap=name not in _LEAST_WIDTH,
            overflow="fold",
            min_width=_LEAST_WIDTH.get(name),
        )
    for row in cells:
        style = _STYLES.get(row["verdict"], "")
        table.add_row(*(Text(row[name], style=style if name == "verdict" else "") for name in shown))
    lines = footer(result)
    if len(shown) < len(_COLUMNS):
        lines.append("narrow terminal: some columns are left out; --json and --markdown have them all")
    return Group(table, *(Text(line, style="yellow" if line.startswith("warning") else "dim") for line in lines))


def _fitting_columns(rows: list[dict[str, str]], width: int) -> list[str]:
    """All columns, less those that a narrow terminal has no room for."""

    def needed(name: str) -> int:
        words = [*name.split("\n"), *(row[name] for row in rows)]
        widest = max(len(word) for word in words)
        return 3 + (min(widest, _LEAST_WIDTH[name]) if name == "recipe" else widest)

    shown = list(_COLUMNS)
    for name in _DISPENSABLE:
        if sum(map(needed, shown)) <= width:
            break
        shown.remove(name)
    return shown


def markdown_table(result: EvalResult) -> str:
    """The same as GitHub Markdown."""
    titles = [name.replace("\n", " ") for name in _COLUMNS]
    align = ["---" if name in ("recipe", "verdict") else "--:" for name in _COLUMNS]
    rows = [titles, align] + [[f"`{cells[0]}`", *cells[1:]] for cells in map(cells_of, result.rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"**{heading(result)}**", "", *lines, "", *(f"- {line}" for line in footer(result)), ""])


def heading(result: EvalResult) -> str:
    """What was measured, in one line."""
    return (
        f"{result.model or 'model'} on {result.text or 'text'}: {result.protocol}, context {result.context}, "
        f"{result.passages} passages, {result.tokens_scored:,} tokens scored, "
        f"dense perplexity {result.reference_ppl:.3f}"
    )


def footer(result: EvalResult) -> list[str]:
    """How to read the columns, the thresholds, and warnings."""
    tables = [f"{row.recipe} {row.table_bytes / 2**20:.2f}" for row in result.rows if row.table_bytes]
    lines = [
        "bits/value: coded values only, without the exact window. bytes/token and ratio (against bfloat16): "
        f"everything held at {result.context} tokens, window included"
        + (" (counted as bfloat16)." if result.cache_dtype != "bfloat16" else "."),
        "exact window: sinks + recent tokens kept exact (least-most). KL: KL(reference || candidate), nats. "
        "encode: seconds for the K and V of one context, all layers.",
        str(result.gates),
    ]
    if tables:
        lines.append(
            "calibrated tables, once for a model and shared by all sequences, not in the columns above (MiB): "
            + ", ".join(tables)
        )
    if result.note:
        lines.append(result.note)
    return lines + [f"warning: {text}" for text in result.warnings]


def cells_of(row: Row) -> list[str]:
    """The row's cells as text, in the order of the columns."""
    recent = f"{row.recent_min}" if row.recent_min == row.recent_max else f"{row.recent_min}-{row.recent_max}"
    interval = "" if row.delta_ppl_ci95 is None else f" [{row.delta_ppl_ci95[0]:+.2f},{row.delta_ppl_ci95[1]:+.2f}]"
    return [
        row.recipe,
        f"{row.payload_bits:.3f}",
        f"{row.all_in_bits:.3f}",
        f"{row.bytes_per_token:,.0f}",
        f"{row.compression_ratio:.2f}",
        f"{row.ppl:.3f}",
        f"{row.delta_ppl_percent:+.2f}{interval}",
        format_kl(row.kl_mean),
        format_kl(row.kl_p99),
        f"{100 * row.top1_agreement:.2f}",
        f"{row.sinks}+{recent}",
        "" if row.encode_seconds is None else f"{row.encode_seconds:.3f}",
        row.verdict,
    ]


def format_kl(value: float) -> str:
    """Fixed point where that shows three digits, else powers of ten."""
    return f"{value:.5f}" if value >= 1e-3 else f"{value:.1e}"

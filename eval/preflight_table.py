"""A pre-flight for a terminal."""

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.eval.preflight import Preflight

_STYLES = {"PASS": "green", "FAIL": "bold white on red", "WARN": "bold yellow", "NOTE": "yellow"}


def preflight_table(found: Preflight) -> Group:
    """The checks, what to use instead, the layers, and the verdict last, where it is read."""
    title = f"{found.row.recipe} on {found.measured.model}, {found.measured.text}"
    table = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in ("check", "", "detail"):
        table.add_column(name)
    for check in found.checks:
        table.add_row(check.name, Text(check.status, style=_STYLES[check.status]), check.detail)
    verdict = f"{found.status}: {found.row.recipe} on {found.measured.model}"
    lines = [Text(line) for line in found.advice]
    return Group(
        table,
        _layers(found),
        *lines,
        Text(f" {verdict} ", style=_STYLES[found.status]),
        Text(f"{found.seconds:.0f} s", style="dim"),
    )


def _layers(found: Preflight) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, title="layers, worst head of each", title_justify="left", pad_edge=False)
    titles = ("layer", "logit error\nnats", "value error\nrelative", "key outlier", "value outlier", "query\ncondition")
    for name in titles:
        table.add_column(name, justify="right")
    table.add_column("")
    for layer in found.layers:
        table.add_row(
            str(layer.layer),
            f"{layer.logit_error:.3f}",
            f"{layer.value_error:.4f}",
            f"{layer.key_outlier:.1f}",
            f"{layer.value_outlier:.1f}",
            f"{layer.query_condition:.0e}",
            Text("at risk", style="yellow") if layer.layer in found.risky else "",
        )
    return table

"""``kakeya calibrate --check`` for a terminal."""

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.calibration.check import Report, StreamCheck

_SHOWN = 6
"""Channels listed by number; of more only how many."""


def report_table(report: Report) -> Group:
    """One line for each layer and stream, then what holds for all."""
    header = report.header
    title = (
        f"{header.get('model') or header['fingerprint'][:12]}: {header['num_layers']} layers, "
        f"{header['num_kv_heads']} key/value heads, head_dim {header['head_dim']}; "
        f"{header.get('tokens', 0):,} tokens, Fisher matrices from {header['fisher']}"
    )
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("stream")
    for name in ("cond\ncovariance", "cond\nFisher", "cond\nqueries"):
        table.add_column(name, justify="right")
    table.add_column("tr(F S)\nby head", justify="right")
    table.add_column("largest", justify="right")
    table.add_column("dead")
    table.add_column("huge")
    table.add_column("at risk", style="yellow")
    for each in report.streams:
        table.add_row(*_cells(each))
    lines = [Text(line) for line in _footer(report)]
    return Group(Text(title), table, *lines, *(Text(f"warning: {text}", style="yellow") for text in report.warnings))


def _cells(each: StreamCheck) -> list[str]:
    return [
        str(each.layer),
        each.stream,
        f"{each.covariance_condition:.1e}",
        f"{each.fisher_condition[0]:.1e}" if each.fisher_condition else "",
        "" if each.query_condition is None else f"{each.query_condition:.1e}",
        " ".join(f"{loss:.1e}" for loss in each.losses[0]) if each.losses else "",
        f"{each.largest:.3g}",
        _listed([f"{head}:{channel}" for head, channel in each.dead]),
        _listed([f"{each.head}:{each.channel}" for each in each.huge]),
        ", ".join(each.risks),
    ]


def _listed(channels: list[str]) -> str:
    if len(channels) <= _SHOWN:
        return " ".join(channels)
    return f"{' '.join(channels[:_SHOWN])} and {len(channels) - _SHOWN} more"


def _footer(report: Report) -> list[str]:
    header = report.header
    lines = [
        "cond: largest over smallest eigenvalue, worst head; tr(F S): twice the nats lost for each token if none of a "
        "head's were kept; channels as head:channel",
        "float16 holds all keys and values"
        if report.float16_safe
        else "float16 does not hold all keys and values: keep exact tokens in bfloat16",
    ]
    lines += [
        f"window {window}: tr(F S) spans a factor of {spread:.1e} over heads"
        for window, spread in zip(report.windows, report.loss_spread, strict=True)
    ]
    lines += [
        f"window {row['window']}, {row['bits']:g} bits: fitted on half of the text, {row['own']:.2e} nats expected on "
        f"it, {row['other']:.2e} on the other half: {row['ratio']:.2f} times"
        for row in report.stability
    ]
    lines += [
        f"window {row['window']}, {row['bits']:g} bits, nats on the other half by ridge of the Fisher matrix: "
        + ", ".join(f"{each['ridge']:g}: {each['other']:.3e}" for each in row.get("ridges", ()))
        for row in report.stability
        if row.get("ridges")
    ]
    made = [str(header[name]) for name in ("text", "date") if header.get(name)]
    version = (header.get("packages") or {}).get("kakeya-jax")
    if version:
        made.append(f"kakeya-jax {version}")
    if made:
        lines.append("made from " + ", ".join(made))
    return lines

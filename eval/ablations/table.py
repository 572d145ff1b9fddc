"""An ablation's results as a table: in the terminal and as Markdown; and the list of ablations."""

from collections.abc import Sequence
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.eval.ablations import registry
from kakeya_jax.eval.ablations.registry import find_ablation
from kakeya_jax.eval.ablations.results import AblationResult
from kakeya_jax.models.config import ModelConfig


def result_table(result: AblationResult) -> Group:
    """The terminal form: the question, one line for each row, and how to read it."""
    table = Table(box=rich.box.SIMPLE_HEAD, title=result.question, title_justify="left", pad_edge=False)
    table.add_column("")
    columns = find_ablation(result.ablation).columns
    for column in columns:
        table.add_column(column.title, justify="right", overflow="fold")
    for row in result.rows:
        table.add_row(str(row["label"]), *(column.text(row) for column in columns))
    return Group(
        table, *(Text(line, style="yellow" if line.startswith("warning") else "dim") for line in lines(result))
    )


def markdown_table(result: AblationResult) -> str:
    """The same as GitHub Markdown, without a heading."""
    columns = find_ablation(result.ablation).columns
    rows = [["", *(column.title for column in columns)], ["---", *("--:" for _ in columns)]]
    rows += [[str(row["label"]), *(column.text(row) for column in columns)] for row in result.rows]
    table = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([result.question, "", *table, "", *(f"- {line}" for line in lines(result)), ""])


def lines(result: AblationResult) -> list[str]:
    """What was measured and what it says: scope, findings, notes, warnings, command."""
    scope = f"{result.model} on {result.text}: {result.passages} passages of {result.context} tokens"
    scope += f", {result.tokens_scored:,} tokens scored for each row"
    found = [scope + ("." if result.baseline is None else f"; baseline: {result.baseline}.")]
    found += [f"Claimed: {claim}." for claim in result.claims]
    found += [f"Found: {finding}" for finding in result.findings]
    found += find_ablation(result.ablation).notes
    if result.gates is not None:
        found.append(f"Gates fixed before the run (SHA-256 {result.gates['sha256'][:12]}...): {result.gates['text']}.")
    found += [f"warning: {text}" for text in result.warnings]
    where = result.environment
    devices = ", ".join(dict.fromkeys(where["devices"]))
    found.append(f"`{result.command}`, {devices}, jax {where['packages']['jax']}, {where['date']}.")
    return found


def listing(config: ModelConfig) -> list[dict[str, Any]]:
    """Every ablation with its number of cells and rough cost on the bundled model."""
    found = []
    for ablation in registry.ABLATIONS.values():
        cells = len(ablation.cells(config, ablation.demo.context))
        found.append(
            {
                "name": ablation.name,
                "question": ablation.question,
                "cells": cells,
                "minutes": round(cells * ablation.seconds / 60, 1),
            }
        )
    return found


def listing_table(found: Sequence[dict[str, Any]]) -> Group:
    """The list for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for title, justify in (("name", "left"), ("cells", "right"), ("minutes", "right"), ("question", "left")):
        table.add_column(title, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    for each in found:
        table.add_row(each["name"], str(each["cells"]), f"{each['minutes']:.1f}", each["question"])
    note = "cells and minutes: of the bundled model (`kakeya ablate NAME`), on two CPU cores, very roughly"
    return Group(table, Text(note, style="dim"))

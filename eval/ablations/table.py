"""An ablation's results as a table: in the terminal and as Markdown; and the list of ablations."""

from collections.abc import Sequence
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.eval.ablations import registry
from kakeya_jax.eval.ablations.ablation import Ablation
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
    return "\n".join([result.question, "", rows_table(result), "", *(f"- {line}" for line in lines(result)), ""])


def rows_table(result: AblationResult) -> str:
    """The rows as a Markdown table."""
    columns = find_ablation(result.ablation).columns
    rows = [["", *(column.title for column in columns)], ["---", *("--:" for _ in columns)]]
    rows += [[str(row["label"]), *(column.text(row) for column in columns)] for row in result.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def lines(result: AblationResult) -> list[str]:
    """What was measured, what is claimed, what it says, how to read it, and how to repeat it."""
    scope, *rest = result_lines(result)
    claims = [f"Claimed: {claim}." for claim in result.claims]
    return [scope, *claims, *rest[:-1], *notes(find_ablation(result.ablation)), rest[-1]]


def result_lines(result: AblationResult) -> list[str]:
    """What belongs to this measurement alone: scope, findings, gates, warnings, command."""
    scope = f"{result.model} on {result.text}: {result.passages} passages of {result.context} tokens"
    scope += f", {result.tokens_scored:,} tokens scored for each row"
    found = [scope + ("." if result.baseline is None else f"; baseline: {result.baseline}.")]
    found += [f"Found: {finding}" for finding in result.findings]
    if result.gates is not None:
        found.append(f"Gates fixed before the run (SHA-256 {result.gates['sha256'][:12]}...): {result.gates['text']}.")
    found += [f"warning: {text}" for text in result.warnings]
    where = result.environment
    devices = ", ".join(dict.fromkeys(where["devices"]))
    found.append(f"`{result.command}`, {devices}, jax {where['packages']['jax']}, {where['date']}.")
    return found


def notes(ablation: Ablation) -> tuple[str, ...]:
    """How to read its table."""
    return ablation.notes


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

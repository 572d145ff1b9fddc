"""``kakeya report``: measurements as one HTML page that needs no other file, no script and no network."""

import datetime
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kakeya_jax import __version__
from kakeya_jax.eval.gates import REJECT
from kakeya_jax.eval.results import EvalResult, Pair, Row, window_warning
from kakeya_jax.eval.svg_plot import SHAPES, Point, has_place, shape_mark, svg_plots
from kakeya_jax.eval.table import format_kl
from kakeya_jax.whole_file import whole_file

TEMPLATE = "report.html.j2"

_OF_A_RECIPE = re.compile(r"recipe ('[^']*') (.+)")
"""A warning that tells something of one recipe."""

_STYLES = {"ACCEPT": "accept", "MARGINAL": "marginal", REJECT: "reject"}


def save_report(
    runs: Sequence[EvalResult],
    path: str | pathlib.Path,
    *,
    title: str,
    peers: Mapping[str, Any] | None = None,
    command: str = "",
) -> None:
    """Writes the page, and the folders that it needs.

    Args:
        runs: measurements; each gets a section.
        path: the ``.html`` file.
        title: of the page.
        peers: rows of other implementations; see ``load_peers``.
        command: what made the page.

    Raises:
        ImportError: jinja2 is not installed.
    """
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(runs, title=title, peers=peers, command=command)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def render(runs: Sequence[EvalResult], *, title: str, peers: Mapping[str, Any] | None = None, command: str = "") -> str:
    """The page as text; see ``save_report``."""
    try:
        import jinja2
    except ImportError:
        raise ImportError("reports need jinja2; install it with: pip install 'kakeya-jax[report]'") from None
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(
        autoescape=True, loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    sections = [_section(number, run, peers) for number, run in enumerate(runs, start=1)]
    return environment.get_template(TEMPLATE).render(
        title=title,
        sections=sections,
        command=command,
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def load_peers(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads rows of other implementations: ``{"about", "rows": [{"peer", "bits", "recipe", MODEL: KL, ...}]}``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"peers file {path} does not exist")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        complete = bool(data["about"]) and all(row["peer"] and float(row["bits"]) > 0 for row in data["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON object with about, and rows of peer and bits: {error}") from None
    if not complete:
        raise ValueError(f"{path} has an empty about, a row without a name, or bits that are not positive")
    return data


def _section(number: int, run: EvalResult, peers: Mapping[str, Any] | None) -> dict[str, Any]:
    windows = list(dict.fromkeys(row.window for row in run.rows))
    points = [_point(row, windows) for row in run.rows]
    others = [] if peers is None else [row for row in peers["rows"] if _is_number(row.get(run.model))]
    peer_points = [
        Point(label=row["peer"], bits=float(row["bits"]), kl=float(row[run.model]), style="peer", series=None)
        for row in others
    ]
    mixed = window_warning(run.rows)
    return {
        "id": f"run-{number}",
        "model": run.model or "model",
        "text": run.text or "text",
        "size": f"{run.protocol}, context {run.context:,}",
        "facts": _facts(run),
        "note": run.note,
        "mixed": mixed,
        "warnings": _together([text for text in run.warnings if text != mixed]),
        "plot": svg_plots([*points, *peer_points], description=f"KL against bits: {run.model} on {run.text}"),
        "legend": _legend(run, windows, bool(peer_points)),
        "not_drawn": [each.label for each in points if not has_place(each)],
        "rows": [_cells(row) for row in run.rows],
        "several_windows": len(windows) > 1,
        "window": _window(run.rows[0]) if run.rows else "",
        "gates": run.gates,
        "counts": {
            verdict: sum(row.verdict == verdict for row in run.rows)
            for verdict in dict.fromkeys(row.verdict for row in run.rows)
        },
        "peers_about": None if peers is None or not others else peers["about"],
        "peers": [_peer_cells(row, run) for row in others],
        "commands": run.command.split("\n") if run.command else [],
        "environment": _environment(run.environment),
        "counted": run.cache_dtype != "bfloat16",
    }


def _facts(run: EvalResult) -> list[tuple[str, str]]:
    size = ("warm-up", f"{run.warmup}") if run.continuation is None else ("continuation", f"{run.continuation}")
    return [
        ("protocol", run.protocol),
        ("context", f"{run.context:,}"),
        size,
        ("passages", f"{run.passages}"),
        ("tokens scored", f"{run.tokens_scored:,}"),
        ("dense perplexity", f"{run.reference_ppl:.3f}"),
        ("dtype", run.dtype if run.dtype == run.cache_dtype else f"{run.dtype}, cache {run.cache_dtype}"),
    ]


def _point(row: Row, windows: list[tuple[int, int, int]]) -> Point:
    return Point(
        label=row.recipe,
        bits=row.all_in_bits,
        kl=row.kl_mean,
        interval=row.kl_ci95,
        style=_STYLES.get(row.verdict, "other"),
        series=windows.index(row.window),
    )


def _legend(run: EvalResult, windows: list[tuple[int, int, int]], with_peers: bool) -> list[tuple[str, str]]:
    """Marks as SVG elements, and what they mean."""
    found = []
    for verdict in dict.fromkeys(row.verdict for row in run.rows):
        found.append((_swatch("circle", _STYLES.get(verdict, "other")), verdict))
    if len(windows) > 1:
        for index, window in enumerate(windows):
            words = f"exact: {window[0]} sinks, {window[1]} to {window[2]} recent"
            found.append((_swatch(SHAPES[index % len(SHAPES)], "plain"), words))
    if with_peers:
        found.append((_swatch("diamond", "peer"), "other implementations, their window"))
    return found


def _swatch(shape: str, style: str) -> str:
    return (
        '<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true" xmlns="http://www.w3.org/2000/svg">'
        f"{shape_mark(shape, 8, 8, style)}/></svg>"
    )


def _cells(row: Row) -> dict[str, str]:
    return {
        "recipe": row.recipe,
        "spelled": _spelled(row),
        "payload": _fixed(row.payload_bits, 3),
        "all_in": _fixed(row.all_in_bits, 3),
        "bytes_per_token": f"{row.bytes_per_token:,.0f}",
        "ratio": _fixed(row.compression_ratio, 2),
        "delta_ppl": _signed(row.delta_ppl_percent),
        "delta_ppl_ci": _interval(row.delta_ppl_ci95, _signed),
        "kl": _kl(row.kl_mean),
        "kl_ci": _interval(row.kl_ci95, _kl),
        "kl_p99": _kl(row.kl_p99),
        "top1": _fixed(100 * row.top1_agreement, 2),
        "window": _window(row),
        "tables": f"{row.table_bytes / 2**20:.2f}" if row.table_bytes else "",
        "verdict": row.verdict,
        "style": _STYLES.get(row.verdict, "other"),
    }


def _together(warnings: Sequence[str]) -> list[str]:
    """Warnings, those that say the same of several recipes as one."""
    said: dict[str, list[str]] = {}
    for text in warnings:
        match = _OF_A_RECIPE.fullmatch(text)
        said.setdefault(text if match is None else match[2], []).extend([] if match is None else [match[1]])
    forms = {0: "{rest}", 1: "recipe {names} {rest}"}
    return [
        forms.get(len(names), "each of {names} {rest}").format(names=", ".join(names), rest=rest)
        for rest, names in said.items()
    ]


def _spelled(row: Row) -> str:
    """A named recipe in full; empty where that tells nothing: the recipe is spelled out, or its name is its codec."""
    first = row.recipe.split(",")[0]
    told = "=" in first or row.recipe_text in (row.recipe, f"both={row.recipe}")
    return "" if told else row.recipe_text


def _peer_cells(peer: Mapping[str, Any], run: EvalResult) -> dict[str, str]:
    ours = next((row for row in run.rows if row.recipe == peer.get("recipe")), None)
    return {
        "peer": str(peer["peer"]),
        "bits": f"{float(peer['bits']):.3f}",
        "kl": _kl(float(peer[run.model])),
        "recipe": str(peer.get("recipe", "")),
        "our_bits": "–" if ours is None else _fixed(ours.all_in_bits, 3),
        "our_kl": "–" if ours is None else _kl(ours.kl_mean),
    }


def _environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            rows += [(str(package), str(version)) for package, version in value.items() if version is not None]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((name.replace("_", " "), text))
    return rows


def _window(row: Row) -> str:
    recent = f"{row.recent_min}" if row.recent_min == row.recent_max else f"{row.recent_min}–{row.recent_max}"
    return f"{row.sinks} + {recent}"


def _interval(pair: Pair | None, form: Any) -> str:
    return "" if pair is None else f"[{form(pair[0])}, {form(pair[1])}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "not finite"


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _kl(value: float) -> str:
    return format_kl(value) if math.isfinite(value) else "not finite"


def _breakable(text: str) -> Any:
    """HTML of a recipe that a narrow column may break after a comma or a bracket."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([,(])", r"\1<wbr/>", str(escape(text))))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

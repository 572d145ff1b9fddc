"""The HTML page: well-formed, nothing from outside, every row and every number that must be there."""

import html.parser
import itertools
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from result_samples import sample_result, sample_row

from kakeya_jax.eval.cells import Cells
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.report import render
from kakeya_jax.eval.results import window_warning
from kakeya_jax.eval.runs import load_runs
from kakeya_jax.eval.svg_plot import NARROW, Point, pareto_front, svg_plot, svg_plots

PEERS = {
    "about": "Quoted from elsewhere.",
    "rows": [
        {"peer": "TurboQuant <K 2>", "bits": 2.125, "recipe": "int4", "house": 0.02, "other": None},
        {"peer": "not of this model", "bits": 3.0, "recipe": "int8", "house": None},
    ],
}
RESULT = sample_result(
    sample_row("int4", 0.004, bits=4.5),
    sample_row("<script>alert(1)</script>", 0.1, bits=2.0, verdict="REJECT"),
    sample_row("tight", 0.02, bits=4.5, sinks=0, recent_min=1, recent_max=128),
    sample_row("broken", float("nan"), kl_ci95=None, bits=1.0),
    warnings=("only 90 tokens scored",),
)
VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order, and collects what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.data: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a results file and of a sweep of two cells, with rows of others."""
    folder = tmp_path_factory.mktemp("report")
    RESULT.save(folder / "a.json")
    with Cells(folder / "b.jsonl") as cells:
        for recipe in ("int8", "kivi-4"):
            cell = sample_result(sample_row(recipe, 1e-4, bits=8.0), text="wiki.npy", command=f"kakeya eval {recipe}")
            cells.add({"recipe": recipe}, cell.to_dict())
    (folder / "peers.json").write_text(json.dumps(PEERS))
    arguments = ["report", folder / "a.json", folder / "b.jsonl", "--html", folder / "out" / "r.html"]
    assert run([str(each) for each in (*arguments, "--peers", folder / "peers.json", "--title", "A & B")]) == 0
    return (folder / "out" / "r.html").read_text()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_is_well_formed(text: str, page: Page):
    assert text.startswith("<!DOCTYPE html>")
    identities = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(identities)) == len(identities)
    targets = {value[1:] for _, name, value in page.attributes if name == "href" and value}
    assert targets == set(identities)
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(svg)


def test_it_needs_nothing_from_outside(text: str, page: Page):
    outside = [each for each in page.attributes if each[1] in ("src", "srcset", "data", "action", "background")]
    assert outside == []
    assert all(value and value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not {"script", "link", "iframe", "img", "object", "embed"} & {tag for tag, _, _ in page.attributes}
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg"}


def test_every_row_is_there_with_its_window_and_verdict(page: Page):
    first, peers, second, again = page.tables
    assert again[1][:3] == peers[1][:3]  # the same model
    rows = {row[0].split("both=")[0]: row for row in first[1:]}
    assert set(rows) == {row.recipe for row in RESULT.rows}
    assert (rows["int4"][1], rows["int4"][3]) == ("4.500", "ACCEPT")
    assert rows["int4"][6] == "4 + 128–255"
    assert rows["tight"][6] == "0 + 1–128"
    assert rows["<script>alert(1)</script>"][3] == "REJECT"
    assert "not finite" in rows["broken"][2]
    assert [row[0].split("both=")[0] for row in second[1:]] == ["int8", "kivi-4"]
    assert peers[1] == ["TurboQuant <K 2>", "2.125", "0.02000", "4.500", rows["int4"][2].split("[")[0], "int4"]
    assert len(peers) == 2


def test_warnings_gates_commands_and_environment(page: Page):
    said = " ".join("".join(page.data).split())
    assert str(window_warning(RESULT.rows)) in said
    assert said.count("Mixed windows.") == 1
    assert "only 90 tokens scored" in said
    assert said.count(RESULT.gates) == 2
    for command in (RESULT.command, "kakeya eval int8", "kakeya eval kivi-4"):
        assert command in said
    assert "0.10.2" in said
    assert "torch" not in said
    assert "Not drawn, without coded values or a finite KL: broken" in said
    assert "Quoted from elsewhere." in said
    assert "A & B" in said


def test_it_fits_phones_and_dark_rooms(text: str):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1"/>' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count('<div class="scroll"') == text.count("<table")
    assert text.count('<svg class="plot wide"') == text.count('<svg class="plot narrow"') > 0
    assert "svg.wide { display: none; } svg.narrow { display: block;" in text


def test_the_picture_of_a_phone_has_its_points_and_names_inside():
    points = [
        Point(label=f"a-recipe-with-a-long-name-{n}", bits=n, kl=10.0**-n, style="accept", series=0)
        for n in range(1, 9)
    ]
    narrow = ET.fromstring(svg_plots(points, description="x").split("\n<svg")[1].join(["<svg", ""]))
    assert narrow.attrib["viewBox"] == f"0 0 {NARROW[0]} {NARROW[1]}"
    circles, labels = narrow.findall("{*}circle"), narrow.findall("{*}text[@class='label']")
    assert len(circles) == 8
    assert labels
    assert all(0 < float(each.attrib["cx"]) < NARROW[0] for each in circles)
    assert all(0 < float(each.attrib["x"]) < NARROW[0] - 6 * len(str(each.text)) for each in labels)
    ticks = [float(each.attrib["x"]) for each in narrow.findall("{*}text[@class='tick'][@text-anchor='middle']")]
    assert min(right - left for left, right in itertools.pairwise(ticks)) > 20
    assert svg_plots([Point(label="n", bits=2, kl=float("nan"), style="accept", series=0)], description="x") == ""


def test_what_is_said_of_several_recipes_is_said_once():
    said = [f"recipe {name!r} codes nothing at this context: all" for name in ("int8", "kivi-4")]
    result = sample_result(sample_row("int8", 1e-4), warnings=(*said, "recipe 'x' is odd", "only 90 tokens scored"))
    text = "".join(Page(render([result], title="t")).data)
    assert "each of 'int8', 'kivi-4' codes nothing at this context: all" in text
    assert "recipe 'x' is odd" in text
    assert "only 90 tokens scored" in text


def test_a_recipe_is_spelled_out_where_its_name_does_not_tell():
    rows = [
        sample_row("int8", 1e-4),
        sample_row("both=kakeya(bits=2,block_size=128)", 1e-3, recipe_text="both=kakeya(block_size=128,bits=2)"),
        sample_row("kakeya-ratio", 1e-3, recipe_text="key=kakeya,value=int4"),
    ]
    (table,) = Page(render([sample_result(*rows)], title="t")).tables
    names = ["int8", "both=kakeya(bits=2,block_size=128)", "kakeya-ratiokey=kakeya,value=int4"]
    assert [row[0] for row in table[1:]] == names


def test_the_line_joins_what_nothing_beats():
    points = [
        Point(label=str(kl), bits=bits, kl=kl, style="accept", series=0)
        for bits, kl in ((2, 0.1), (3, 0.2), (3, 0.05), (4, 0.05), (5, 0.01))
    ]
    assert [(each.bits, each.kl) for each in pareto_front(points)] == [(2, 0.1), (3, 0.05), (5, 0.01)]


def test_places_are_where_the_numbers_say():
    at = {"a": (2.0, 0.1), "b": (4.0, 0.1), "c": (4.0, 0.001)}
    points = [Point(label=k, bits=b, kl=kl, style="accept", series=0) for k, (b, kl) in at.items()]
    root = ET.fromstring(svg_plot(points, description="x"))
    circles = root.findall("{*}circle")
    x, y = ([float(each.attrib[name]) for each in circles] for name in ("cx", "cy"))
    assert x[0] < x[1] == x[2]
    assert y[0] == y[1] < y[2]  # down is better
    assert [str(each.findtext("{*}title")).split(":")[0] for each in circles] == ["a", "b", "c"]
    assert svg_plot([Point(label="n", bits=2, kl=float("nan"), style="accept", series=0)], description="x") == ""


def test_cells_of_other_settings_are_other_measurements(tmp_path: Path):
    with Cells(tmp_path / "s.jsonl") as cells:
        for context in (1024, 2048):
            for recipe in ("int4", "int8"):
                cell = sample_result(sample_row(recipe, 0.001), context=context, command=f"{recipe} {context}")
                cells.add({"recipe": recipe, "context": context}, cell.to_dict())
    runs = load_runs([tmp_path / "s.jsonl"])
    assert [(each.context, [row.recipe for row in each.rows]) for each in runs] == [
        (1024, ["int4", "int8"]),
        (2048, ["int4", "int8"]),
    ]
    assert runs[0].command == "int4 1024\nint8 1024"


def test_bad_inputs(fails, tmp_path: Path):
    page = ("--html", tmp_path / "r.html")
    assert "does not exist" in fails("report", tmp_path / "none.json", *page)
    assert "does not exist" in fails("report", tmp_path / "none.jsonl", *page)
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no finished cell" in fails("report", tmp_path / "empty.jsonl", *page)
    (tmp_path / "bad.jsonl").write_text('{"key": 1}\n')
    assert "line 1 of" in fails("report", tmp_path / "bad.jsonl", *page)
    RESULT.save(tmp_path / "a.json")
    assert "is in several results" in fails("report", tmp_path / "a.json", tmp_path / "a.json", *page)
    (tmp_path / "peers.json").write_text("[]")
    assert "must be a JSON object" in fails("report", tmp_path / "a.json", *page, "--peers", tmp_path / "peers.json")
    assert "is a folder" in fails("report", tmp_path / "a.json", "--html", tmp_path)
    assert not (tmp_path / "r.html").exists()

import dataclasses
import io
import json
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from kakeya_jax.eval.plot import save_plot
from kakeya_jax.eval.results import SCHEMA, EvalResult, Row, window_warning
from kakeya_jax.eval.table import markdown_table, result_table

ROW = Row(
    recipe="turboquant-3",
    recipe_text="both=turboquant(bits=3)",
    payload_bits=3.0,
    all_in_bits=3.125,
    bytes_per_token=3400.0,
    compression_ratio=4.75,
    sinks=4,
    recent_min=128,
    recent_max=255,
    ppl=27.3,
    delta_ppl_percent=0.5,
    delta_ppl_ci95=(0.37, 0.6),
    kl_mean=0.0043,
    kl_ci95=(0.004, 0.0046),
    kl_p99=0.031,
    top1_agreement=0.9577,
    verdict="ACCEPT",
    encode_seconds=0.25,
    run_seconds=9.0,
    compile_seconds=12.0,
    passage_delta_nll=(0.004, 0.006),
    passage_kl=(0.004, 0.0046),
)
TIGHT = dataclasses.replace(ROW, recipe="tight", sinks=0, recent_min=1, recent_max=128)
RESULT = EvalResult(
    model="demo",
    text="text.txt",
    protocol="stream",
    context=4096,
    warmup=512,
    passages=6,
    continuation=None,
    tokens_scored=21498,
    reference_ppl=27.193,
    gates="gates 'default': ...",
    dtype="float32",
    cache_dtype="float32",
    rows=(ROW, TIGHT),
    environment={"backend": "cpu"},
    warnings=("rows keep different tokens exact",),
)
BROKEN = dataclasses.replace(
    ROW, ppl=float("nan"), kl_mean=float("nan"), kl_p99=float("inf"), delta_ppl_ci95=None, verdict="REJECT"
)


def test_json_has_the_documented_form(tmp_path: Path):
    RESULT.save(tmp_path / "new" / "out.json")
    document = json.loads((tmp_path / "new" / "out.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert {"model", "tokens_scored", "protocol", "context", "environment", "rows"} <= set(document)
    row = document["rows"][0]
    expected = {
        "recipe": "turboquant-3",
        "bits_per_value": {"payload": 3.0, "all_in": 3.125},
        "bytes_per_token": 3400.0,
        "compression_ratio": 4.75,
        "ppl": 27.3,
        "delta_ppl_percent": 0.5,
        "delta_ppl_ci95": [0.37, 0.6],
        "kl_mean": 0.0043,
        "kl_p99": 0.031,
        "top1_agreement": 0.9577,
        "verdict": "ACCEPT",
    }
    assert {name: row[name] for name in expected} == expected
    assert row["exact_window"] == {"sinks": 4, "recent_min": 128, "recent_max": 255}


def test_json_stays_json_when_numbers_are_not_finite():
    document = json.loads(dataclasses.replace(RESULT, rows=(BROKEN,)).to_json())
    jsonschema.validate(document, SCHEMA)
    row = document["rows"][0]
    assert (row["ppl"], row["kl_mean"], row["kl_p99"], row["delta_ppl_ci95"]) == (None, None, None, None)


@pytest.mark.parametrize("missing", ["model", "tokens_scored", "protocol", "context", "environment", "rows"])
def test_schema_asks_for_every_part(missing: str):
    document = RESULT.to_dict()
    del document[missing]
    with pytest.raises(jsonschema.ValidationError, match=missing):
        jsonschema.validate(document, SCHEMA)


def test_schema_looks_into_rows():
    document = RESULT.to_dict()
    document["rows"][0]["top1_agreement"] = 95.77
    with pytest.raises(jsonschema.ValidationError, match=r"95\.77"):
        jsonschema.validate(document, SCHEMA)


def test_windows_are_compared():
    assert window_warning((ROW, ROW)) is None
    assert "0 sinks + 1-128 recent, 4 sinks + 128-255 recent" in str(window_warning((ROW, TIGHT)))
    wide = dataclasses.replace(ROW, recent_max=639)
    assert "4 sinks + 128-639 recent" in str(window_warning((ROW, wide)))
    dense = dataclasses.replace(TIGHT, all_in_bits=16.0)
    assert window_warning((ROW, dense)) is None  # nothing is coded there


def test_terminal_table_shows_what_matters():
    stream = io.StringIO()
    Console(file=stream, width=160).print(result_table(RESULT, 160))
    text = stream.getvalue()
    for part in (
        "21,498 tokens scored",
        "27.193",
        "3.125",
        "+0.50 [+0.37,+0.60]",
        "0.00430",
        "95.77",
        "4+128-255",
    ):
        assert part in text
    assert "warning: rows keep different tokens exact" in text
    assert "gates 'default'" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_narrow_terminals_lose_columns_but_no_digits(width: int):
    stream = io.StringIO()
    long = dataclasses.replace(ROW, recipe="key=kakeya(bits=4),value=besicovitch(direction_bits=3),boundary=2")
    result = dataclasses.replace(RESULT, rows=(long, TIGHT))
    Console(file=stream, width=width).print(result_table(result, width))
    text = stream.getvalue()
    for part in ("3.125", "+0.50", "[+0.37,+0.60]", "0.00430", "95.77", "4+128-255", "ACCEPT", "narrow terminal"):
        assert part in text
    assert "…" not in text


def test_markdown_table_has_one_line_for_each_row():
    lines = markdown_table(RESULT).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(RESULT.rows)
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| `turboquant-3` | 3.000 | 3.125 | 3,400 | 4.75 |")
    assert any("warning" in line for line in lines)


def test_plot_leaves_out_what_has_no_place_on_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    identity = dataclasses.replace(ROW, recipe="identity", all_in_bits=16.0, kl_mean=0.0, kl_ci95=(0.0, 0.0))
    save_plot(dataclasses.replace(RESULT, rows=(ROW, TIGHT, BROKEN, identity)), tmp_path / "a" / "kl.png")
    assert (tmp_path / "a" / "kl.png").read_bytes().startswith(b"\x89PNG")
    uncoded = dataclasses.replace(ROW, recipe="uncoded", payload_bits=float("nan"), all_in_bits=float("nan"))
    broken = dataclasses.replace(BROKEN, recipe="broken")
    notes: list[str] = []
    labels: list[str] = []
    monkeypatch.setattr("matplotlib.figure.Figure.supxlabel", lambda self, text, **_: notes.append(text))
    monkeypatch.setattr("matplotlib.axes.Axes.set_xlabel", lambda self, text, **_: labels.append(text))
    save_plot(dataclasses.replace(RESULT, rows=(ROW, uncoded, broken), note="small"), tmp_path / "some.png")
    assert notes == ["small\nnot drawn, without coded values or a finite KL: uncoded, broken"]
    assert labels == ["bits per value, all-in (scales, norms and bases included; exact window and tables not)"]
    with pytest.raises(ValueError, match="no recipe has both coded values and a finite KL"):
        save_plot(dataclasses.replace(RESULT, rows=(uncoded, broken)), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_plot(RESULT, tmp_path / "kl.txt")

import dataclasses
import json
import pathlib
import re

import jsonschema
import pytest
from script_modules import load_script

from kakeya_jax.eval.merge import load_result, merge, merge_files, replace_rows
from kakeya_jax.eval.results import SCHEMA, EvalResult, Row

ROOT = pathlib.Path(__file__).parent.parent.parent


def row(name: str, sinks: int = 4) -> Row:
    return Row(
        recipe=name, recipe_text=name, payload_bits=3.0, all_in_bits=3.125, bytes_per_token=10.0,
        compression_ratio=4.0, sinks=sinks, recent_min=128, recent_max=255, ppl=27.0, delta_ppl_percent=0.5,
        delta_ppl_ci95=(0.4, 0.6), kl_mean=0.004, kl_ci95=None, kl_p99=0.03, top1_agreement=0.95,
        verdict="ACCEPT", encode_seconds=0.1, run_seconds=1.0, compile_seconds=2.0,
        passage_delta_nll=(0.1, 0.2), passage_kl=(0.004, 0.004),
    )  # fmt: skip


def result(*rows: Row) -> EvalResult:
    return EvalResult(
        protocol="stream", context=4096, warmup=512, passages=2, continuation=None, tokens_scored=7166,
        reference_ppl=27.1, gates="gates", dtype="float32", cache_dtype="float32", rows=rows,
        environment={"backend": "cpu"}, model="m", text="t",
    )  # fmt: skip


def test_files_round_trip_and_merge(tmp_path):
    result(row("a")).save(tmp_path / "a.json")
    result(row("b", sinks=0)).save(tmp_path / "b.json")
    assert load_result(tmp_path / "a.json") == result(row("a"))
    merged = merge_files([tmp_path / "a.json", tmp_path / "b.json"])
    assert [each.recipe for each in merged.rows] == ["a", "b"]
    assert merged.warnings[0].startswith("rows keep different tokens exact")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "other"}, "differ in text"),
        ({"context": 2048}, "differ in context"),
        ({"reference_ppl": 27.2}, "different dense perplexities"),
        ({"rows": (row("a"),)}, "recipe a is in several results"),
    ],
)
def test_what_is_not_one_measurement_is_refused(change, message: str):
    with pytest.raises(ValueError, match=message):
        merge([result(row("a")), dataclasses.replace(result(row("b")), **change)])


def test_rows_measured_anew_say_where(tmp_path):
    old = result(row("a"), row("b"))
    new = dataclasses.replace(result(dataclasses.replace(row("b"), kl_mean=0.003)), environment={"backend": "gpu"})
    replaced = replace_rows(old, new)
    assert [each.environment for each in replaced.rows] == [None, {"backend": "gpu"}]
    assert replaced.environment == {"backend": "cpu"}
    replaced.save(tmp_path / "replaced.json")
    assert load_result(tmp_path / "replaced.json") == replaced
    jsonschema.validate(json.loads((tmp_path / "replaced.json").read_text()), SCHEMA)
    same = replace_rows(old, dataclasses.replace(new, environment=old.environment))
    assert [(each.kl_mean, each.environment) for each in same.rows] == [(0.004, None), (0.003, None)]
    with pytest.raises(ValueError, match="recipe c has no row to replace"):
        replace_rows(old, result(row("c")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": "hou', "it is no readable JSON (Unterminated string"),
        ("[1, 2]", "it holds a list, not an object"),
        ('{"schema_version": 1}', "it has no 'rows'"),
        ('{"schema_version": 1, "rows": [], "warnings": [], "speed": 3}', "it has an unknown 'speed'"),
        ('{"rows": [3]}', "it has another structure"),
    ],
)
def test_what_a_file_lacks_is_said_in_words_of_the_file(tmp_path, content: str, message: str):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_result(tmp_path / "x.json")
    assert "as kakeya eval --json writes them" in str(raised.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"rows": [{}]}))
    with pytest.raises(ValueError, match="not a results file"):
        load_result(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_result(tmp_path / "y.json")
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


@pytest.mark.skipif(not (ROOT / "scripts").is_dir(), reason="needs a checkout")
def test_the_results_page_says_what_the_files_say():
    module = load_script("make_results")
    assert (ROOT / "docs" / "results.md").read_text() == module.build()
    assert (ROOT / "README.md").read_text() == module.build_readme()

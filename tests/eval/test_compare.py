"""Paired differences of two measurements, and the refusal of what cannot be paired."""

import json

import numpy as np
import pytest
from result_samples import sample_result, sample_row

from kakeya_jax.eval.cli import run
from kakeya_jax.eval.compare import check_comparable, compare, to_dict

FIRST = sample_result(sample_row("int4", 0.004, seed=1), sample_row("kivi-2", 0.01, seed=2), sample_row("only-a", 0.1))
SECOND = sample_result(sample_row("kivi-2", 0.01, seed=2), sample_row("int4", 0.002, seed=1))


def test_rows_are_paired_by_recipe_and_passage():
    report = compare(FIRST, SECOND)
    assert [(pair.first.recipe, pair.second.recipe) for pair in report.pairs] == [
        ("int4", "int4"),
        ("kivi-2", "kivi-2"),
    ]
    halved, same = report.pairs
    expected = np.subtract(SECOND.rows[1].passage_kl, FIRST.rows[0].passage_kl)
    assert halved.kl.mean == pytest.approx(expected.mean())
    assert halved.kl.mean == pytest.approx(-0.5 * FIRST.rows[0].kl_mean)
    assert halved.nll.mean == pytest.approx(0.5 * halved.kl.mean)
    assert halved.kl.ci95 is not None
    low, high = halved.kl.ci95
    assert low < halved.kl.mean < high < 0
    assert (halved.better, same.better) == ("second", "-")
    assert same.kl.mean == 0
    assert report.notes == ("only in the first file: only-a",)


def test_pairing_takes_the_noise_of_passages_away():
    """Passages differ by 10 % here, the difference of the two recipes by far less: only pairs show it."""
    first, second = (sample_result(sample_row(name, kl, seed=3)) for name, kl in (("a", 0.0100), ("b", 0.0101)))
    pair = compare(first, second, recipe_a="a", recipe_b="b").pairs[0]
    assert pair.better == "first"
    assert first.rows[0].kl_ci95 is not None
    low, high = first.rows[0].kl_ci95
    assert low < second.rows[0].kl_mean < high
    assert compare(second, first, recipe_a="b", recipe_b="a").pairs[0].better == "second"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, "model: 'house' and 'other'"),
        ({"text": "wiki.npy"}, "text: 'book.npy' and 'wiki.npy'"),
        (
            {"protocol": "snapshot", "continuation": 512},
            "protocol: 'stream' and 'snapshot'; scoring (continuation): None",
        ),
        ({"context": 2048}, "context: 4096 and 2048"),
        ({"warmup": 256, "tokens_scored": 23034}, "scoring (warmup): 512 and 256; scoring (tokens): 21498 and 23034"),
        ({"passages": 5}, "scoring (passages): 6 and 5"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' and 'bfloat16'"),
        ({"text_sha256": "b" * 64}, "both texts are called 'book.npy', but their scored passages differ"),
        ({"reference_ppl": 27.3}, "dense perplexities differ (27.193 and 27.3)"),
        ({"reference_ppl": None}, "a dense perplexity is no finite number"),
    ],
)
def test_other_measurements_are_refused(change: dict, said: str):
    with pytest.raises(ValueError, match="not comparable") as caught:
        check_comparable(FIRST, sample_result(sample_row("int4", 0.002), **change))
    assert said in str(caught.value)


def test_other_windows_are_refused():
    tight = sample_result(sample_row("int4", 0.002, sinks=0, recent_min=1, recent_max=128))
    with pytest.raises(
        ValueError, match=r"keep different tokens exact \(4 sinks \+ 128-255 recent and 0 sinks \+ 1-128"
    ):
        compare(FIRST, tight)


def test_recipes_that_are_not_there():
    with pytest.raises(
        ValueError, match=r"the first file has no row 'int5'; did you mean 'int4'\? its rows: int4, kivi-2, only-a"
    ):
        compare(FIRST, SECOND, recipe_a="int5", recipe_b="int4")
    with pytest.raises(ValueError, match="no recipe is in both files"):
        compare(FIRST, sample_result(sample_row("other", 0.1)))


def test_command(tmp_path, capsys, fails):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    broken = sample_row("nan", float("nan"), kl_ci95=None)
    for path, result in zip(paths, (FIRST, SECOND), strict=True):
        sample_result(*result.rows, broken).save(path)
    assert run(["compare", *map(str, paths), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pairs"][0]["better"] == "second"
    assert document["pairs"] == to_dict(compare(FIRST, SECOND))["pairs"] + document["pairs"][2:]
    assert document["pairs"][2]["delta_kl"] == {"mean": None, "ci95": None}
    assert run(["compare", *map(str, paths), "--recipe-a", "int4", "--recipe-b", "kivi-2"]) == 0
    shown = capsys.readouterr().out
    assert "second - first" in shown
    assert "first" in shown.split("better")[1]
    sample_result(*SECOND.rows, model="other").save(paths[1])
    assert "not comparable, they differ in model: 'house' and 'other'" in fails("compare", *paths)
    assert "does not exist" in fails("compare", paths[0], tmp_path / "none.json")

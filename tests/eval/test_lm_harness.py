"""Tasks of lm-evaluation-harness through a compressed cache, from local files."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.eval import run_lm_eval
from kakeya_jax.eval.cli import run
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import DEMO, find_folder
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'kakeya-jax[lm-eval]'")

from kakeya_jax.eval.lm_harness import CompressedLM

TIGHT = "both=int4(block_size=32),sinks=0,recent=1"
CHOICE = """
task: kakeya_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/choice.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: kakeya_text
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/text.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
UNTIL = """
task: kakeya_until
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/text.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "x"
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two of the bundled model's eight layers, which is what compiling takes, and its tokenizer."""
    folder = tmp_path_factory.mktemp("shallow")
    model, params = checkpoint.load(DEMO)
    checkpoint.save(folder, dataclasses.replace(model.config, num_layers=2), _shallow(params))
    shutil.copy(find_folder(DEMO) / "tokenizer.json", folder)
    return folder


def _shallow(params: Any) -> dict[str, Any]:
    return {name: params[name] for name in ("embed_tokens", "layers_0", "layers_1", "final_norm")}


@pytest.fixture(scope="module")
def shallow(folder) -> tuple[Any, Any, Any]:
    return *checkpoint.load(folder), load_tokenizer(folder)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    text = " ".join(bundled_text().read_text(encoding="utf-8")[20_000:26_000].split())
    return [each.strip() + "." for each in text.split(".") if 60 < len(each) < 240][:6]


def scorer(shallow: tuple[Any, Any, Any], recipe: str = TIGHT, **options: Any) -> CompressedLM:
    model, params, tokenizer = shallow
    return CompressedLM(model, params, tokenizer, Recipe.parse(recipe), **options)


def tokens_of(lm: CompressedLM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return lm._loglikelihood_tokens([(pair, lm.tok_encode(pair[0]), lm.tok_encode(pair[1])) for pair in pairs])


def dense_likelihood(shallow: tuple[Any, Any, Any], context: list[int], continuation: list[int]) -> tuple[float, bool]:
    model, params, _ = shallow
    tokens = np.zeros((1, 128), np.int32)  # what follows is not seen, and one length is one program
    tokens[0, : len(context + continuation)] = context + continuation
    logits = jax.jit(model.apply)({"params": params}, tokens).logits[0, len(context) - 1 :][: len(continuation)]
    likely = jax.nn.log_softmax(logits)[jnp.arange(len(continuation)), jnp.asarray(continuation)]
    return float(likely.sum()), bool(jnp.all(jnp.argmax(logits, -1) == jnp.asarray(continuation)))


def test_an_exact_cache_gives_the_dense_models_likelihoods(shallow, sentences):
    lm = scorer(shallow, "identity")
    pairs = [(each[:30], each[30:]) for each in sentences]
    found = tokens_of(lm, *pairs)
    for (context, continuation), (likelihood, greedy) in zip(pairs, found, strict=True):
        expected = dense_likelihood(shallow, lm.tok_encode(context), lm.tok_encode(continuation))
        assert likelihood == pytest.approx(expected[0], abs=1e-3)
        assert greedy == expected[1]
    greedy_text = lm._generate(sentences[0][:40], {"max_gen_toks": 4})
    assert tokens_of(lm, (sentences[0][:40], greedy_text))[0][0] < 0


def test_the_compressed_cache_is_read(shallow, sentences):
    """A request of a page and more: coarse codes move its likelihood, and batching does not."""
    text = " ".join(sentences)
    pair = (text[:-80], text[-80:])
    exact, coarse = (
        tokens_of(scorer(shallow, recipe), pair)[0][0]
        for recipe in ("identity", "both=turboquant(block_size=32,bits=1),sinks=0,recent=1")
    )
    assert abs(exact - coarse) > 0.5
    together = tokens_of(scorer(shallow), pair, (text[:50], text[50:90]))
    assert together[0][0] == pytest.approx(tokens_of(scorer(shallow, batch_size=1), pair)[0][0], abs=1e-3)


def test_long_requests_lose_their_beginning(shallow, sentences):
    lm = scorer(shallow, "identity", max_length=48)
    tokens = lm.tok_encode(" ".join(sentences))[:80]
    found = lm._loglikelihood_tokens([(("", ""), tokens[:70], tokens[70:])])[0][0]
    assert found == pytest.approx(dense_likelihood(shallow, tokens[32:70], tokens[70:])[0], abs=1e-3)


def test_requests_of_many_lengths_compile_few_programs(shallow, monkeypatch):
    lm = scorer(shallow)
    random = np.random.default_rng(0)
    requests = [(("", ""), random.integers(0, 6000, n).tolist(), [1, 2, 3]) for n in range(1, 120, 3)]
    compiled = set()
    score = lm._score

    def counted(params: Any, cache: Any, tokens: Any, mask: Any) -> Any:
        compiled.add(tokens.shape)
        return score(params, cache, tokens, mask)

    monkeypatch.setattr(lm, "_score", counted)
    assert len(lm._loglikelihood_tokens(requests)) == len(requests)
    assert compiled == {(4, 64), (4, 128)}


@pytest.mark.filterwarnings("ignore")  # the harness's own, and those of what it imports
def test_tasks_from_local_files(tmp_path: pathlib.Path, folder, sentences, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    documents = [{"text": each[:60], "choices": [each[60:], " zqx vvk jjq"]} for each in sentences]
    (tmp_path / "choice.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": " ".join(sentences[at : at + 2])}) for at in range(4))
    )
    for name, task in (("choice", CHOICE), ("text", ROLLING), ("until", UNTIL)):
        (tmp_path / f"{name}.yaml").write_text(task.format(folder=tmp_path))
    out = tmp_path / "out.json"
    words = ["lm-eval", str(folder), "--task", "kakeya_choice,kakeya_text", "--task", "kakeya_until", "--limit", "2"]
    words += ["--include", str(tmp_path), "--recipe", "identity", "--recipe", TIGHT, "--json", str(out), "--offline"]
    assert run(words) == 0
    results = json.loads(out.read_text())
    assert [row["recipe"] for row in results["rows"]] == ["identity", TIGHT]
    for row in results["rows"]:
        assert row["results"]["kakeya_choice"]["acc,none"] == 1.0
        assert 1 < row["results"]["kakeya_text"]["word_perplexity,none"] < 1e6
        assert row["results"]["kakeya_until"]["exact_match,none"] == 0.0
    exact, coded = (row["results"]["kakeya_text"]["word_perplexity,none"] for row in results["rows"])
    assert exact != coded
    assert "kakeya_choice" in capsys.readouterr().out
    assert run(["lm-eval", str(folder), "--task", "nothing", "--recipe", "int4"]) == 2
    assert "unknown task nothing" in capsys.readouterr().err
    assert run(["lm-eval", str(folder), "--task", "x", "--recipe", "int4", "--include", str(tmp_path / "none")]) == 2
    assert "none is no folder; name the one that holds your task files" in capsys.readouterr().err


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(run_lm_eval.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'kakeya-jax\[lm-eval\]'"):
        run_lm_eval.Request(model="demo", tasks=("a",), recipes=("int4",))

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which part of a recipe earns its bytes?
#
# A recipe has parts: bits of keys, bits of values, exact first tokens, exact latest tokens, exact boundary layers. An ablation
# changes one of them at a time and compares passage by passage with the unchanged recipe, so that texts that are hard for every recipe
# cancel. Here on the bundled model, with few passages: intervals are wide, and the verdicts are about this model.

# %%
import math

import matplotlib.pyplot as plt

from kakeya_jax import Recipe, cache_report
from kakeya_jax.eval.ablations.recipe_cells import compare
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokens = encode_text(bundled_text(), load_tokenizer("demo"))
baseline = "both=turboquant(bits=3),sinks=4,recent=128"
changes = {
    "keys at 2 bits": "key=turboquant(bits=2),value=turboquant(bits=3),sinks=4,recent=128",
    "values at 2 bits": "key=turboquant(bits=3),value=turboquant(bits=2),sinks=4,recent=128",
    "no exact sinks": "both=turboquant(bits=3),sinks=0,recent=128",
    "no recent window": "both=turboquant(bits=3),sinks=4,recent=1",
    "boundary layers exact": "both=turboquant(bits=3),sinks=4,recent=128,boundary=1",
}

# %% [markdown]
# What each change does to the size is known before anything runs. At 32,768 tokens the exact window hardly counts, at 1024 it does.

# %%
for name, text in {"baseline": baseline, **changes}.items():
    sizes = [cache_report(model.config, Recipe.parse(text), max_length=length) for length in (1024, 32768)]
    print(f"{name:22}", *(f"{size.bytes_per_token:7.0f} bytes/token at {size.max_length}" for size in sizes), sep="  ")

# %% [markdown]
# What it does to predictions is measured, all recipes on the same passages.

# %%
result = evaluate(model, params, tokens, [baseline, *changes.values()], context=1024, passages=5, encode_time=False)
rows = result.to_dict()["rows"]
paired = {name: compare(row, rows[0]) for name, row in zip(changes, rows[1:], strict=True)}
print(f"{result.tokens_scored:,} tokens scored; KL of the baseline {rows[0]['kl_mean']:.5f} nats")
for name, against in paired.items():
    low, high = against["kl_ratio_ci95"]
    print(f"{name:22} KL x {against['kl_ratio']:.2f}  [{low:.2f}, {high:.2f}]")
for text in result.warnings:
    print("warning:", text)

# %% [markdown]
# The warning is deserved: rows with another exact window are not the same promise at the same size. So each change is set against
# the bytes that it saves or costs. Right of the vertical line is worse, left is better; above the horizontal line is larger. A change that is worth making lies
# below and not far right: of two that save the same bytes, take the one further left.

# %%
size = {
    name: cache_report(model.config, Recipe.parse(text), max_length=32768).bytes_per_token
    for name, text in changes.items()
}
whole = cache_report(model.config, Recipe.parse(baseline), max_length=32768).bytes_per_token
figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
for name, against in paired.items():
    ratio, (low, high) = against["kl_ratio"], against["kl_ratio_ci95"]
    axis.errorbar(ratio, size[name] / whole, xerr=[[ratio - low], [high - ratio]], fmt="o", capsize=3, label=name)
axis.axvline(1, color="0.6", lw=0.8)
axis.axhline(1, color="0.6", lw=0.8)
axis.set_xscale("log")
ticks = [0.5, 0.7, 1, 1.5, 2, 3, 4]
axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
axis.minorticks_off()
axis.set(xlabel="KL / baseline's, 95 % interval", ylabel="bytes / baseline's, at 32,768 tokens")
axis.grid(alpha=0.3)
_ = axis.legend(fontsize=8)

# %% [markdown]
# Which part earns its bytes, then? How much KL falls, as a logarithm, for each percent of bytes that the part takes at 32,768
# tokens. Exact sinks are left out: they take nearly none, and a page of codes more makes up for them.

# %%
value = {name: math.log(against["kl_ratio"]) / (100 * (1 - size[name] / whole)) for name, against in paired.items()}
for name in sorted((name for name in changes if abs(size[name] / whole - 1) > 0.01), key=lambda name: -value[name]):
    print(f"{name:22} {100 * (size[name] / whole - 1):+6.1f} % of bytes, {value[name]:.3f} for each percent")

# %% [markdown]
# The library's own ablations are more such questions. `kakeya ablate --list` names them, `kakeya ablate NAME` runs one; the
# tables in `docs/ablations.md` are made from the file that is read here.

# %%
import json
import pathlib

from IPython.display import Markdown, display

from kakeya_jax.eval.ablations.results import result_from_dict
from kakeya_jax.eval.ablations.table import result_lines, rows_table

committed = json.loads(pathlib.Path("../docs/results/ablations/demo.json").read_text())["ablations"]
found = {each["ablation"]: result_from_dict(each) for each in committed}
for result in found.values():
    print(f"{result.ablation}: {result.question}")

# %% [markdown]
# One of them in full: keys alone, values alone, both, for two methods. It agrees with the two rows above: keys cost more.

# %%
streams = found["streams"]
display(Markdown("\n".join([rows_table(streams), "", *(f"- {line}" for line in result_lines(streams))])))

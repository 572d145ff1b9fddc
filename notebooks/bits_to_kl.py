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
# # From bits to KL: which recipe for which budget?
#
# A recipe is a point: bits for each coded value, with every scale, norm and basis counted, against the KL divergence of the
# model's predictions. A recipe is worth using where no other one has both fewer bits and less KL: the points for which that
# holds are the **Pareto front**. First we measure a few points on the bundled model, then we read the committed measurements
# of two larger ones.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np

from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokens = encode_text(bundled_text(), load_tokenizer("demo"))
recipes = ["int4", "kivi-2", "turboquant-2", "turboquant-3", "turboquant-4"]
result = evaluate(model, params, tokens, recipes, context=1024, passages=4, encode_time=False)
result = dataclasses.replace(result, model="demo", text="text.txt")  # names for titles and files
print(f"{result.tokens_scored:,} tokens scored, reference perplexity {result.reference_ppl:.2f}")

# %% [markdown]
# `save_plot` is the picture of `kakeya eval --plot`: both axes logarithmic, whiskers are 95 % intervals over passages, colour is
# the verdict of the gates. Whiskers of four short passages are wide; `kakeya eval` scores 20,000 tokens by default.

# %%
import pathlib
import tempfile

from IPython.display import Image, display

from kakeya_jax.eval.plot import save_plot

with tempfile.TemporaryDirectory() as folder:
    save_plot(result, pathlib.Path(folder) / "kl.png")
    display(Image(str(pathlib.Path(folder) / "kl.png"), width=760))

# %% [markdown]
# One bit more halves the distance of neighbouring levels, which divides squared error by about four; KL is of second order in small
# errors, so it should fall by about four, too. How far does it on this model?

# %%
rows = {row.recipe: row for row in result.rows}
ladder = [rows[name] for name in ("turboquant-2", "turboquant-3", "turboquant-4")]
slope, _ = np.polyfit([row.all_in_bits for row in ladder], np.log([row.kl_mean for row in ladder]), 1)
print(f"turboquant: KL divided by {np.exp(-slope):.1f} for each bit, between 2 and 4 bits")

# %% [markdown]
# Now models of 30M parameters, measured on a GPU: 21,498 scored tokens for each recipe, the files behind `docs/results.md`.
# Only rows with the same exact window may be compared: here four first and at least 128 latest tokens.

# %%
from kakeya_jax.eval.runs import load_run

results = pathlib.Path("../docs/results")
runs = {
    name: load_run(results / f"{name}.eval_wikitext2_valid.json") for name in ("house-qwen2-30m", "house-qwen3-30m")
}


def comparable(run):
    """Rows of the standard window whose cache is packed: files (klt-storage) and exact codes left out."""
    kept = [row for row in run.rows if row.sinks == 4 and row.recent_min == 128 and "=" not in row.recipe]
    return [row for row in kept if not row.recipe.startswith(("klt-storage", "identity"))]


def pareto(rows):
    """Rows that no other row beats in both bits and KL, by bits."""
    front = []
    for row in sorted(rows, key=lambda row: (row.all_in_bits, row.kl_mean)):
        if not front or row.kl_mean < front[-1].kl_mean:
            front.append(row)
    return front


figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
families = ("klt", "turboquant", "kivi", "int", "kakeya", "ladder", "besicovitch")
for axis, (name, run) in zip(axes, runs.items(), strict=True):
    kept = comparable(run)
    for family, color in zip(families, plt.cm.tab10.colors, strict=False):
        members = [row for row in kept if row.recipe.startswith(family)]
        axis.loglog(
            [row.all_in_bits for row in members], [row.kl_mean for row in members], "o", ms=4, color=color, label=family
        )
    front = pareto(kept)
    axis.loglog([row.all_in_bits for row in front], [row.kl_mean for row in front], "k-", lw=0.8, label="front")
    axis.set(title=name, xlabel="bits per value, all-in")
    axis.set_xticks([1, 2, 3, 4, 5, 6, 8, 10], ["1", "2", "3", "4", "5", "6", "8", "10"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
axes[0].set_ylabel("mean KL, nats")
_ = axes[1].legend(fontsize=8)

# %% [markdown]
# The calibrated family holds the front up to six bits. Its tables belong to the model and are not in the bits; without calibration the
# front is another one. Read a budget off either:

# %%
for name, run in runs.items():
    kept = comparable(run)
    uncalibrated = [row for row in kept if not row.table_bytes]
    print(f"{name}, text {run.text}")
    for kind, of_kind in (("all", kept), ("without calibration", uncalibrated)):
        print(f"  front, {kind}:")
        for row in pareto(of_kind):
            print(
                f"    {row.all_in_bits:6.3f} bits  KL {row.kl_mean:.2e}  top-1 {100 * row.top1_agreement:.2f} %  {row.recipe}"
            )

# %% [markdown]
# Three cautions. The exact window is not in the bits: at 4096 tokens it is a sizeable part of the bytes (`compression_ratio` counts
# it). Intervals of neighbouring points overlap: `kakeya compare A.json B.json` gives paired differences over the same passages. And
# bits are not time: no kernel reads the codes of `klt-trellis`, which are reconstructed before attention (`docs/klt.md`).

# %%
run = runs["house-qwen2-30m"]
for row in pareto([row for row in comparable(run) if not row.table_bytes]):
    low, high = row.kl_ci95
    print(f"{row.recipe:20} KL {row.kl_mean:.2e} [{low:.2e}, {high:.2e}], {row.compression_ratio:.2f} x smaller in all")

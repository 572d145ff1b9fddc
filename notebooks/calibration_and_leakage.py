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
# # What would a calibration on the evaluation text falsely gain?
#
# Calibrated tables are fitted to text. If it is the text that is evaluated, the tables know what is coming, and the result is too
# good: **leakage**. We measure by how much, with calibrations of the same small size, one from other text and one from the very
# passages that are scored; and we see how the library refuses the second.

# %%
import numpy as np

from kakeya_jax import Recipe
from kakeya_jax.calibration.artifact import ExactTokens, load_calibration
from kakeya_jax.calibration.fit import fit
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.text import cut_passages, encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokens = encode_text(bundled_text(), load_tokenizer("demo"))
other, scored = np.array_split(tokens, 2)
context, passages = 768, 4
texts = {
    "other text": cut_passages(other, context, passages),
    "the scored text": cut_passages(scored, context, passages),
}
print(*(f"{name}: {text.shape[0]} passages of {text.shape[1]} tokens" for name, text in texts.items()), sep="\n")

# %% [markdown]
# `fit` takes passages; it cannot know what will be evaluated. The tight window, without exact sinks and latest tokens, leaves
# most to the tables.

# %%
window = ExactTokens(sinks=0, recent=1, page=128)
calibrations = {name: fit(model, params, text, exact=[window], joint=False) for name, text in texts.items()}

# %% [markdown]
# A calibration remembers hashes of the windows it has seen, at any offset, and `check_text` refuses text that contains one. The
# command line calls it before every measurement; there is no option to turn it off.

# %%
for name, calibration in calibrations.items():
    try:
        calibration.check_text(scored)
        print(f"{name}: may be evaluated here")
    except ValueError as error:
        print(f"{name}: {error}")

# %% [markdown]
# From Python one can leave the check out, which is what we do now, once, to see what it is worth.

# %%
recipe = Recipe.parse("klt-2,sinks=0,recent=1")
rows = {
    name: evaluate(
        model, params, scored, [recipe], context=context, passages=passages, calibration=calibration, encode_time=False
    ).to_dict()
    for name, calibration in calibrations.items()
}
for name, result in rows.items():
    row = result["rows"][0]
    print(
        f"tables of {name:15} KL {row['kl_mean']:.5f}  dPPL {row['delta_ppl_percent']:+.2f} %  ({result['tokens_scored']:,} tokens)"
    )

# %% [markdown]
# The same passages were scored, so the difference is paired. A ratio below one is what leaking falsely gains over an honest
# calibration of the same size.

# %%
from kakeya_jax.eval.ablations.recipe_cells import compare

honest, leaked = (rows[name]["rows"][0] for name in ("other text", "the scored text"))
against = compare(leaked, honest)
low, high = against["kl_ratio_ci95"]
print(f"leaked tables: {against['kl_ratio']:.2f} [{low:.2f}, {high:.2f}] times the KL of honest ones")

# %% [markdown]
# About a quarter less KL than is true, for nothing: honestly, a quarter of a bit more buys that (from `klt-2` to `klt-3`, one bit
# divides KL by 2.9 on house-qwen2-30m, `docs/results.md`). Perplexity on so few tokens does not show it. The size of the gain
# depends on the draw: with three passages and one draw of labels (`samples=1`) instead of four, the ratio was 0.98 [0.81, 1.09]
# (26 November 2026, two CPU cores).
#
# How much text is enough? Without any evaluation text, `fit` answers by halves: tables of even passages are judged on odd ones,
# by the second-order loss that they minimise. A ratio of one says that the tables owe nothing to their text. `kakeya calibrate --check FILE`
# prints this. The bundled calibration saw 98,304 tokens.

# %%
calibrations["the bundled one"] = load_calibration(bundled_calibration(), model.config, params)
for name, calibration in calibrations.items():
    for line in calibration.about["stability"]:
        if line["window"].startswith("0 sinks"):
            print(f"{name:15} {line['bits']:.0f} bits: other half over own half {line['ratio']:.2f}")

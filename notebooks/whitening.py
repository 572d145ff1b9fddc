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
# # What is whitening of keys worth?
#
# Attention sees keys only through logits, products with queries. Where queries look along few directions, an error along
# another one costs nothing. **Whitening** maps keys by the square root of the queries' second moment before they are coded, so that plain
# squared error becomes the squared error of logits. In theory that is the right metric. We look at the moment, and measure.

# %%
import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np

from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
calibration = load_calibration(bundled_calibration(), model.config, params)
tokens = encode_text(bundled_text(), load_tokenizer("demo"))
calibration.check_text(tokens)

# %% [markdown]
# Queries of this model from training text: how is their energy spread over directions? The flatter, the less there is to gain; the
# steeper, the more an error is stretched along directions that were rarely looked along.

# %%
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for layer in range(model.config.num_layers):
    moment = np.asarray(calibration.statistics[layer, "key"]["query"][0], np.float64)
    spectrum = np.linalg.eigvalsh(moment)[::-1]
    axis.semilogy(spectrum / spectrum.sum(), color=plt.cm.viridis(layer / model.config.num_layers), label=layer)
    print(
        f"layer {layer}: half of the energy in {np.searchsorted(spectrum.cumsum() / spectrum.sum(), 0.5) + 1} of "
        f"{len(spectrum)} directions, largest over smallest {spectrum[0] / spectrum[-1]:,.0f}"
    )
axis.set(xlabel="direction, head 0", ylabel="share of the queries' energy")
_ = axis.legend(title="layer", fontsize=7, ncols=2)

# %% [markdown]
# Keys alone are coded here, values stay exact, and both arms are decoded alike: nothing but the map differs. The map comes from
# other text than the one that is scored. Keys of this model lie far from zero, which TurboQuant codes around; the second pair takes
# each head's calibrated mean out first, whitened or not.

# %%
from kakeya_jax.eval.ablations.recipe_cells import compare
from kakeya_jax.eval.perplexity import evaluate

arms = {
    "TurboQuant, 2 bits": ("turboquant(bits=2)", "turboquant(bits=2,whiten=true)"),
    "the same, mean out": ("turboquant(bits=2,static_mean=true)", "turboquant(bits=2,static_mean=true,whiten=true)"),
}
recipes = [f"key@pre={codec},value=identity" for pair in arms.values() for codec in pair]
result = evaluate(model, params, tokens, recipes, context=1024, passages=5, calibration=calibration, encode_time=False)
rows = result.to_dict()["rows"]
print(f"{result.tokens_scored:,} tokens scored")
for name, plain, whitened in zip(arms, rows[::2], rows[1::2], strict=True):
    against = compare(whitened, plain)
    low, high = against["kl_ratio_ci95"]
    print(
        f"{name:20} KL {plain['kl_mean']:.5f} plain, {whitened['kl_mean']:.5f} whitened: x {against['kl_ratio']:.2f} [{low:.2f}, {high:.2f}]"
    )

# %% [markdown]
# Whitening stretches the direction that most queries share, and the keys' mean along it: that mean then takes the whole range of the
# quantiser. How much of the damage the mean explains is the difference between the pairs. What is left after it is the error
# that the map moves from directions that are looked along to all others, where it is amplified on the way back.
#
# And KakeyaTurbo, for which whitening was proposed, from the committed ablation of this model (`kakeya ablate whitening`,
# blocks of 512 tokens with a basis of their own, which adapts to the keys but not to the queries):

# %%
from IPython.display import Markdown, display

from kakeya_jax.eval.ablations.results import result_from_dict
from kakeya_jax.eval.ablations.table import result_lines, rows_table

committed = json.loads(pathlib.Path("../docs/results/ablations/demo.json").read_text())["ablations"]
ablation = next(result_from_dict(each) for each in committed if each["ablation"] == "whitening")
display(Markdown("\n".join([rows_table(ablation), "", *(f"- {line}" for line in result_lines(ablation))])))

# %% [markdown]
# The metric of logits is not the loss: softmax forgives errors that are the same for all keys, and errors on keys that nobody attends
# to, and the second moment averages over both. `klt` takes the Fisher metric of the model's predictions instead, which is measured with
# gradients; the notebook `calibrated` shows it. Measure before you switch whitening on: `kakeya doctor` does it for a model.

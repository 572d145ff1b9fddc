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
# Why? Let $S$ be the second moment of keys and $M$ that of queries, both before their rotary embedding, $M = L L^T$, $D$ the head dimension. A
# quantiser that rotates at random errs alike along all directions, in proportion to the energy of what it codes:
#
# * plain keys have the energy $\mathrm{tr}(S)$; their error costs $c\, \mathrm{tr}(S)\, \mathrm{tr}(M) / D$ in logits ($c$ depends on the bits alone);
# * whitened keys $kL$ have the energy $\mathrm{tr}(MS)$, and the error of their code *is* that of logits: $c\, \mathrm{tr}(MS)$;
# * but that is for a query at the key's own position. The embedding turns a query that stands further on, and with it $M$. Over all distances of
#   a passage the moment is another one, $\bar M$, with the same trace; the error comes back through $L^{-1}$ and costs
#   $c\, \mathrm{tr}(MS)\, \mathrm{tr}(\bar M M^{-1}) / D$.
#
# So whitening multiplies the squared error of logits by
#
# $$\underbrace{\frac{D\, \mathrm{tr}(MS)}{\mathrm{tr}(M)\, \mathrm{tr}(S)}}_{\text{do keys lie where queries look?}}\;
# \underbrace{\frac{\mathrm{tr}(\bar M M^{-1})}{D}}_{\text{1 without the embedding}}.$$
#
# Moments alone predict it; beside it, what TurboQuant does to keys of the scored text with the same map as above.

# %%
import jax.numpy as jnp

from kakeya_jax.codec import round_trip
from kakeya_jax.codecs.turboquant import TurboQuantConfig
from kakeya_jax.eval.ablations.ablation import Setup
from kakeya_jax.eval.ablations.real_vectors import real_blocks
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import rotate_by

setup = Setup(model=model, params=params, tokens=tokens, context=1024, passages=5)
blocks = real_blocks(setup, "key").vectors  # [layers, heads, blocks, tokens, D]
keys = blocks.reshape(*blocks.shape[:2], -1, blocks.shape[-1]).astype(np.float64)
layers, tables = range(len(keys)), calibration.tables_for(Recipe.parse(recipes[-1]))
here = np.stack([np.asarray(calibration.statistics[layer, "key"]["query"], np.float64) for layer in layers])
mean, there, back = (
    np.stack([np.asarray(tables[layer, "key"][name], np.float64) for layer in layers])
    for name in ("static_mean", "whitening", "unwhitening")
)


def over_distances(moment, tokens):
    """A query moment turned by every distance, weighted by how many pairs of a passage have it."""
    distances = np.arange(tokens)
    angle = distances[:, None, None, None] * np.asarray(tables[0, "key"]["rope_frequencies"])
    turned = rotate_by(jnp.float32(moment)[None], angle)
    turned = rotate_by(turned.swapaxes(-1, -2), angle)
    return np.average(np.asarray(turned, np.float64), axis=0, weights=tokens - distances)


def energy(vectors, moment):
    """Mean of ``v moment v^T`` over the vectors of each head."""
    return np.einsum("lknd,lkde,lkne->lk", vectors, moment, vectors, optimize=True) / vectors.shape[2]


def coded(vectors):
    """Vectors after two bits of TurboQuant."""
    codecs = (TurboQuantConfig(bits=2).build(vectors.shape[-1], layer=layer) for layer in layers)
    return np.stack([round_trip(codec, jnp.float32(each)) for codec, each in zip(codecs, vectors, strict=True)])


def measured(keys, moment):
    """Logit error of whitened keys over that of plain ones, for each layer and head."""
    return energy(coded(keys @ there) @ back - keys, moment) / energy(coded(keys) - keys, moment)


def predicted(keys, moment):
    """The same of the moments alone."""
    plain = energy(keys, np.broadcast_to(np.eye(keys.shape[-1]), here.shape)) * np.trace(here, axis1=-2, axis2=-1)
    return energy(keys, here) / plain * np.trace(moment @ np.linalg.inv(here), axis1=-2, axis2=-1)


turned = np.stack([over_distances(moment, setup.context) for moment in here])
centred = keys - mean[:, :, None]
moments = {"queries at the key's position": here, "queries at all distances": turned}
ratios = {name: (predicted(centred, moment), measured(centred, moment)) for name, moment in moments.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharex=True, sharey=True, layout="constrained")
for axis, (name, (theory, found)) in zip(axes, ratios.items(), strict=True):
    for layer in layers:
        axis.loglog(theory[layer], found[layer], "o", color=plt.cm.viridis(layer / len(layers)), label=layer)
    axis.plot([0.4, 12], [0.4, 12], color="gray", linewidth=0.8)
    axis.set(title=name, xlabel="predicted from moments")
    print(
        f"{name:29} error of logits grows in {np.sum(found > 1)} of {found.size} heads, from x {found.min():.2f} to "
        f"x {found.max():.2f}; furthest from the prediction: x {np.exp(np.abs(np.log(found / theory)).max()):.2f}"
    )
axes[0].set_ylabel("logit error, whitened / plain, mean out")
axes[0].legend(title="layer, one dot a head", fontsize=7, ncols=2)

theory, found = (np.concatenate(each) for each in zip(*ratios.values(), strict=True))
assert np.abs(np.log(found / theory)).max() < np.log(1.3)  # each head, and their ratios are far wider apart:
assert theory.max() / theory.min() > 10
assert ratios["queries at all distances"][1].min() > 1.5

# %% [markdown]
# The prediction holds head by head, and explains the loss: at real distances whitening makes the error of logits larger in **every head**. It
# puts errors along directions that no query looks along, and the rotary embedding turns queries into them. Even at the key's own position most
# heads do not gain, since attention puts keys where queries look: a whitened key is a longer one. Would a map made for all distances help, of
# $\bar M$ instead of $M$? Its ratio is $D\, \mathrm{tr}(\bar M S) / (\mathrm{tr}(M)\, \mathrm{tr}(S))$. And what does the mean do, which is out so far?

# %%
trace = np.trace(here, axis1=-2, axis2=-1) / here.shape[-1]
for name, each in {"mean in": keys, "mean out": centred}.items():
    errors = measured(each, turned)
    best = energy(each, turned) / energy(each, np.broadcast_to(np.eye(here.shape[-1]), here.shape)) / trace
    print(
        f"{name:8} measured, layers (geometric mean): {' '.join(f'{x:.1f}' for x in np.exp(np.log(errors).mean(axis=1)))}; "
        f"predicted for a map of all distances: x {best.min():.2f} to x {best.max():.2f}"
    )

# %% [markdown]
# No: with the mean out it would change little in some heads and lose in the others. The mean, which lies along the direction that most queries
# share, is what makes layer 0 by far the worst; in the other layers it changes less than a factor of two, either way.
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

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
# # How many bits does the bundled model's cache need?
#
# A calibrated codec answers for a model, not for a vector: statistics of training text say what an error in each channel of each
# head costs the model's predictions, and one budget is spent where that cost is highest. We look at those statistics, at what a
# budget becomes, and at the price in KL. Small model: the numbers show how the method works, not what a large model needs.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from kakeya_jax import CompressedCache, Recipe, load_session, save_session
from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
calibration = load_calibration(bundled_calibration())
text = encode_text(bundled_text(), load_tokenizer("demo"))
calibration.check_model(model.config, params)  # an error for other weights,
calibration.check_text(text)  # and for text that was calibrated on
print(f"{calibration.about['tokens']:,} tokens of {calibration.about['text']}, measured for these exact windows:")
print(*calibration.exact, sep="\n")

# %% [markdown]
# `tables_for` turns the statistics into the tables of one recipe. Half of a channel's `variances`, after the transform, is what
# dropping it would cost, in nats for each token: the steeper they fall, the fewer channels carry what matters. Channels get
# their bits in groups, here of eight.

# %%
layers = range(model.config.num_layers)
tables = {bits: calibration.tables_for(Recipe.named(f"klt-{bits}")) for bits in (1, 2, 3)}

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for axis, stream in zip(axes, ("key", "value"), strict=True):
    for layer in layers:
        loss = tables[2][layer, stream]["variances"][0] / 2
        axis.semilogy(loss, color=plt.cm.viridis(layer / len(layers)), label=layer)
    axis.set(title=f"{stream}s, head 0", xlabel="channel after the transform")
axes[0].set_ylabel("expected loss, nats")
_ = axes[1].legend(title="layer", fontsize=7, ncols=2)

# %% [markdown]
# One budget for all of them. Each square is a head: the mean bits of its channels, scales and page means not included.

# %%
streams = [(stream, head) for stream in ("key", "value") for head in range(model.config.num_kv_heads)]
figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True, layout="constrained")
for axis, (bits, of_budget) in zip(axes, tables.items(), strict=True):
    mean_bits = np.array(
        [[of_budget[layer, stream]["widths"][head].mean() for stream, head in streams] for layer in layers]
    )
    image = axis.imshow(mean_bits, vmin=0, vmax=8, cmap="viridis", aspect="auto")
    for (layer, column), value in np.ndenumerate(mean_bits):
        color = "black" if value > 5 else "white"
        axis.text(column, layer, f"{value:g}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(streams)), [f"{stream}\nhead {head}" for stream, head in streams], fontsize=7)
    axis.set_title(f"klt-{bits}: mean {mean_bits.mean():.2f} bits", fontsize=9)
axes[0].set_ylabel("layer")
_ = figure.colorbar(image, ax=axes, label="bits per value")

# %% [markdown]
# What does each budget cost? `evaluate` decodes passages through the very cache that users get and compares every prediction with
# those of the dense model. Two methods without calibration stand beside it; all keep 4 sinks and 128 to 255 recent tokens exact.
# The verdict is ACCEPT if perplexity moves by at most 1 % and the most probable token is the same in at least 95 % of predictions.

# %%
from kakeya_jax.eval.perplexity import evaluate

families = {
    "klt": ("klt-1", "klt-2", "klt-3"),
    "turboquant": ("turboquant-2",),
    "kivi": ("kivi-2",),
}
recipes = [recipe for members in families.values() for recipe in members]
result = evaluate(
    model, params, text, recipes, context=1024, passages=3, warmup=512, calibration=calibration, encode_time=False
)
rows = {row.recipe: row for row in result.rows}
print(f"{result.tokens_scored:,} tokens scored")
for row in result.rows:
    measured = f"{row.all_in_bits:6.3f} bits, KL {row.kl_mean:.5f} nats, top-1 {100 * row.top1_agreement:.1f} %"
    print(f"{row.recipe:13} {measured}, dPPL {row.delta_ppl_percent:+.2f} %, {row.verdict}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
for family, members in families.items():
    bits = [rows[recipe].all_in_bits for recipe in members]
    kl = [rows[recipe].kl_mean for recipe in members]
    axis.semilogy(bits, kl, "o-", label=family)
axis.set(xlabel="bits per value, all-in (exact window not included)", ylabel="mean KL, nats")
axis.grid(alpha=0.3)
_ = axis.legend()

# %% [markdown]
# So the answer is a point on a curve: say what KL, or which verdict, is good enough, and read off the bits. Three passages show
# the order of the methods, not their last digits: `kakeya eval` scores 20,000 tokens by default, with intervals.

# %%
smallest = min((row for row in result.rows if row.verdict == "ACCEPT"), key=lambda row: row.all_in_bits)
print(f"fewest bits of those accepted: {smallest.all_in_bits:.3f}, {smallest.recipe}")

# %% [markdown]
# To put a text aside, fewer bits will do: `klt-storage` codes all heads of a layer together, and its session files are
# entropy-coded. A loaded session continues bit for bit as if it had never been saved.

# %%
import pathlib
import tempfile

recipe = Recipe.named("klt-storage-1")
storage_tables = calibration.tables_for(recipe)
step = jax.jit(model.apply)
tokens = jnp.asarray(text)[None, :1024]
cache = CompressedCache.init(model.config, recipe, batch_size=1, max_length=1024, tables=storage_tables)
_, cache = step({"params": params}, tokens[:, :512], cache=cache)
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "session.kakeya"
    size = save_session(cache, path)
    loaded = load_session(path, tables=storage_tables)
print(f"{size.bits_per_value:.3f} bits per coded value in the file, header and checksums included")
logits, _ = step({"params": params}, tokens[:, 512:], cache=cache)
again, _ = step({"params": params}, tokens[:, 512:], cache=loaded)
print("continues identically:", bool((logits == again).all()))

# %% [markdown]
# Calibrating another model is one call. It wants training text, which is not bundled, and it must not see the text that is
# evaluated. **Only to show the call**, this model writes its own text here; 1,200 tokens of it are far too few for tables to use.

# %%
from kakeya_jax.calibration.fit import fit
from kakeya_jax.models.generate import generate

start = np.full((4, 1), model.config.bos_token_id)
written = generate(model, params, start, max_new_tokens=300, temperature=1.0, seed=0).tokens
own = fit(model, params, np.asarray(written))
own.check_text(text)  # none of it is in the evaluated text
widths = own.tables_for(Recipe.named("klt-2"))[0, "key"]["widths"]
print(f"{own.about['tokens']:,} tokens; bits of layer 0's keys, head by head:\n{widths}")

# %% [markdown]
# With a text of your own: `kakeya calibrate MODEL --text TRAIN.txt --out FILE`, then `kakeya calibrate --check FILE`.

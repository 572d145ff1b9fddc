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
# # What does each codec do to a cloud of vectors?
#
# Keys of one head of the bundled model, coded by each method at its usual small setting (two to five bits a value), and looked at:
# where the decoded points lie, and which channels the error falls on. Pictures explain a method; they do not rank it: what an error costs depends on the
# queries that meet it, and only `kakeya eval` measures that.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from kakeya_jax import Recipe, nbytes, round_trip
from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.calibration.codec_tables import dense_vectors
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokens = jnp.asarray(encode_text(bundled_text(), load_tokenizer("demo"))[:516])
vectors = dense_vectors(model, params, tokens)

layer, head = 4, 1
keys = vectors[layer]["key"][:, 4:]  # [heads, 512, head_dim], before their rotary embedding; the first four stay exact
deviation = np.asarray(keys[head].std(axis=0))
print(f"channel deviations of head {head}: {deviation.min():.2f} to {deviation.max():.2f}")
print(f"largest mean against its deviation: {np.abs(np.asarray(keys[head].mean(0)) / deviation).max():.1f}")

# %% [markdown]
# A codec is a config that is built for a head dimension; `round_trip` encodes and decodes blocks. All methods get the same
# vectors here, keys before their rotary embedding; in a cache most store keys after it. `klt` codes all heads at once, with
# tables of its calibration, and with channels of unequal widths: two bits are its mean over the model, each head has its own.
# `kakeya` stores a basis for each block of 512 tokens, which is most of its bits here; heads may share one (`mix_heads=true`).

# %%
calibration = load_calibration(bundled_calibration(), model.config, params)
texts = {
    "round to nearest": "int4",
    "KIVI": "kivi(bits=2)",
    "TurboQuant": "turboquant(bits=2)",
    "D4 lattice": "lattice(lattice=d4,scale_levels=4)",
    "Besicovitch": "besicovitch(direction_bits=3,magnitude_bits=2,subtract_mean=true,block_size=512)",
    "KakeyaTurbo": "kakeya(bits=2)",
    "calibrated": "klt(bits=2.0,form=quality)",
}


def coded(text):
    """The decoded keys `[heads, 512, head_dim]` and all-in bits per value of this head."""
    recipe = Recipe.parse(f"both={text}")
    config = recipe.rules[0].codec
    tables = calibration.tables_for(recipe)[layer, "key"] if config.needs_tables() else None
    codec = config.build(keys.shape[-1], layer=layer, stream="key", tables=tables)
    size = config.block_size
    blocks = keys.reshape(keys.shape[0], -1, size, keys.shape[-1])
    if config.joint_heads:
        blocks = blocks.swapaxes(0, 1)
    decoded = jax.jit(round_trip)(codec, blocks)
    block = jax.ShapeDtypeStruct(blocks.shape[1 if config.joint_heads else 2 :], jnp.float32)
    bits = 8 * nbytes(jax.eval_shape(codec.encode, block)) / block.size
    if config.joint_heads:  # that was the mean of both heads; a head's own are its widths, token scales and page means
        bits = float(tables["widths"][head].mean()) + 8 / keys.shape[-1] + 8 / size
    return (decoded.swapaxes(0, 1) if config.joint_heads else decoded).reshape(keys.shape), bits


results = {name: coded(text) for name, text in texts.items()}
for name, (decoded, bits) in results.items():
    centred = keys[head] - keys[head].mean(0)
    error = float(jnp.sum((decoded[head] - keys[head]) ** 2) / jnp.sum(centred**2))
    print(
        f"{name:17} {bits:6.3f} bits per value, error {100 * error:5.1f} % of the energy around the mean: {texts[name]}"
    )

# %% [markdown]
# The two widest channels. Grey: the keys. Colour: what the cache gives back. Round to nearest, the lattice and TurboQuant code each
# token around zero, so a mean takes part of their range (`static_mean=true` takes a calibrated one out first): points of round to nearest
# that are zero in a channel line up, and TurboQuant's rotation spreads its error over all directions alike. KIVI has four values for
# each channel and 32 tokens. Besicovitch and KakeyaTurbo take the block's own mean out. The calibrated codec keeps these two
# channels finely, and others coarsely.

# %%
first, second = np.argsort(deviation)[::-1][:2]
figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), sharex=True, sharey=True, layout="constrained")
for axis, (name, (decoded, bits)) in zip(axes.flat, results.items(), strict=False):
    axis.plot(keys[head, :, first], keys[head, :, second], ".", ms=3, color="0.75")
    axis.plot(decoded[head, :, first], decoded[head, :, second], ".", ms=3, color="tab:red", alpha=0.6)
    axis.set_title(f"{name}, {bits:.2f} bits", fontsize=10)
for axis in axes.flat[len(results) :]:
    axis.set_axis_off()
figure.supxlabel(f"channel {first}", fontsize=9)
_ = figure.supylabel(f"channel {second}", fontsize=9)

# %% [markdown]
# Error by channel, as a share of the channel's variance; channels from the widest to the narrowest. 100 % means that the channel
# might as well have been its mean. A rotation gives all channels the same error in absolute terms, so narrow channels lose a
# larger share; KIVI scales each channel, so that all lose about the same share.

# %%
order = np.argsort(deviation)[::-1]
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
for (name, (decoded, _)), color in zip(results.items(), plt.cm.tab10.colors, strict=False):
    error = np.asarray(jnp.mean((decoded[head] - keys[head]) ** 2, axis=0)) / deviation**2
    axis.semilogy(100 * error[order], ".-", ms=4, lw=0.8, color=color, label=name)
axis.axhline(100, color="0.5", lw=0.8)
axis.set(xlabel="channel, widest first", ylabel="mean squared error, % of the channel's variance")
axis.grid(alpha=0.3)
_ = axis.legend(fontsize=8, ncols=2)

# %% [markdown]
# What attention sees is neither cloud nor channel but logits. Their error, for queries of the second half of this text that read
# this head (rotary embedding left out, as if all were at one position), weights every direction by how much queries look along it; a
# shift that is the same for all keys, which softmax ignores, is taken out.

# %%
group = model.config.num_heads // model.config.num_kv_heads
queries = (
    vectors[layer]["query"]
    .reshape(-1, 516, keys.shape[-1])[head * group : (head + 1) * group, 256:]
    .reshape(-1, keys.shape[-1])
)


def logit_error(decoded):
    logits, errors = (queries @ each.T for each in (keys[head], decoded[head] - keys[head]))
    return float(jnp.std(errors, axis=1).mean() / jnp.std(logits, axis=1).mean())


for name, (decoded, bits) in sorted(results.items(), key=lambda item: logit_error(item[1][0])):
    print(f"{name:17} {bits:6.3f} bits: logit error {100 * logit_error(decoded):5.1f} % of the logits' own deviation")

# %% [markdown]
# The calibrated codec minimises none of these errors: it spends its bits over all heads and directions by what errors there cost
# the model's predictions. These are the bits it gives to the keys of each head, before scales and means:

# %%
widths = calibration.tables_for(Recipe.parse(f"both={texts['calibrated']}"))
for layer_index in range(model.config.num_layers):
    print(f"layer {layer_index}:", *(f"{each.mean():.3f}" for each in widths[layer_index, "key"]["widths"]))

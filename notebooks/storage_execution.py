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
# # Does a smaller cache make decoding smaller, or faster?
#
# Stored bytes are one thing. What a decode step holds while it runs, and how long it takes, are two others. We decode the same
# tokens of the bundled model three ways: with a dense cache; with a packed cache that is decoded into a dense copy before every
# step, which is what storage alone gives; and with attention that reads the packed codes.

# %%
from kakeya_jax.eval.bench_decode import bench_decode
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokens = load_tokenizer("demo").encode(bundled_text().read_text()[:20_000])
rows = bench_decode(model, params, tokens, ["both=turboquant(bits=2),recent=1"], context=1024, repeats=9)

# %% [markdown]
# **Memory.** *bytes/token* is what the cache keeps between steps. *step* is what XLA's analysis of the compiled step says that it
# allocates besides its arguments and results, the dense copies among them.

# %%
print(f"{'':48}{'bytes/token':>12}{'cache MiB':>11}{'step MiB':>10}")
for row in rows:
    step = "-" if row.step_nbytes is None else f"{row.step_nbytes / 2**20:.2f}"
    name = row.recipe if row.recipe == row.how else f"{row.recipe}, {row.how}"
    print(f"{name:48}{row.bytes_per_token:>12,.0f}{row.cache_nbytes / 2**20:>11.2f}{step:>10}")

# %% [markdown]
# **Speed.** Milliseconds of a step of the whole model, in loops of 16 steps. They are of this machine and this run alone. Rows run one
# after the other, so on a CPU that others use even the ratios move from run to run: repeat it before you believe one.

# %%
print(f"{'':48}{'ms':>8}{'quartiles':>16}{'times as fast':>15}")
for row in rows:
    name = row.recipe if row.recipe == row.how else f"{row.recipe}, {row.how}"
    low, high = row.quartiles
    print(f"{name:48}{row.milliseconds:>8.2f}{f'{low:.2f}-{high:.2f}':>16}{row.times_as_fast:>15.2f}")

# %% [markdown]
# So there are two answers. Bytes between steps do not depend on how a step runs; bytes within a step do; and time follows neither. Only a
# kernel that reads the codes turns saved bytes into saved time on purpose: `docs/kernels.md` has what that gives on a GPU.
# `kakeya bench decode` measures any model, context and recipe, and gives JSON with the environment.

# %%
dense, decoded_first, packed = rows
print(f"stored: {dense.bytes_per_token / packed.bytes_per_token:.2f} times less, however it is read")
if decoded_first.step_nbytes and packed.step_nbytes:
    print(
        f"allocated by a step: decoded first {decoded_first.step_nbytes / packed.step_nbytes:.2f} times as much as packed"
    )

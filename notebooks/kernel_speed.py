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
# # How fast are decode steps over packed codes?
#
# Reading fewer bytes should take less time, if attention reads codes and nothing dense is made of them. The times here were measured on
# GPUs by `kakeya bench attention` and are committed; this notebook reads the files and needs no GPU. `docs/kernels.md` says
# what is in a step and how it was timed, and `docs/kernels-log.md` which file is of which version of the kernels.

# %%
import json
import pathlib

import matplotlib.pyplot as plt

folder = pathlib.Path("../docs/results/kernels")
files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("attention-*.json"))}
for name, data in files.items():
    where = data["environment"]
    print(f"{name}: {', '.join(where['devices'])}, jax {where['packages']['jax']}, {where['date']}")
data = files["attention-h200"]
print(data["command"])

# %% [markdown]
# A shape is sequences x key/value heads x queries for each head x tokens. One decode step of one layer, everything included. *Times*
# is over the best of three dense attentions in the same run, and the size of dense K and V as bfloat16 stands beside it.

# %%
for shape, held in data["shapes"].items():
    rows = {row["name"]: row for row in held["rows"]}
    dense = min((row for name, row in rows.items() if name.startswith("dense")), key=lambda row: row["milliseconds"])
    size = f"{dense['nbytes'] / 1e9:.2f} GB" if "nbytes" in dense else "size not kept"
    print(f"{shape:18} {size:13} best dense: {dense['name'].removeprefix('dense '):11} {dense['milliseconds']:.4f} ms")
    for name, row in rows.items():
        if name.endswith("mosaic_gpu"):
            recipe = name.removesuffix(" mosaic_gpu")
            times = dense["milliseconds"] / row["milliseconds"]
            print(f"    {recipe:46} {row['milliseconds']:.4f} ms, {times:.2f} times")

# %% [markdown]
# How much of the saved bytes becomes saved time? A kernel that only waited for memory would lie on the diagonal, where half the
# bytes take half the time. Points are whole steps, so they also hold what does not shrink: launches, the exact window, rotations.

# %%
figure, axis = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
markers = {"turboquant-4": "o", "int4": "s", "turboquant-2": "^", "kivi-2": "v", "klt-3": "P", "klt-2": "X"}
shapes = [shape for shape, held in data["shapes"].items() if "nbytes" in held["rows"][0]]
for shape, color in zip(shapes, plt.cm.tab10.colors, strict=False):
    rows = {row["name"]: row for row in data["shapes"][shape]["rows"]}
    dense = min((row for name, row in rows.items() if name.startswith("dense")), key=lambda row: row["milliseconds"])
    for name, row in rows.items():
        recipe = name.split()[0]
        if recipe in markers:
            axis.plot(
                dense["nbytes"] / row["nbytes"],
                dense["milliseconds"] / row["milliseconds"],
                markers[recipe],
                color=color,
                label=shape if recipe == "turboquant-4" else None,
            )
axis.plot([1, 8], [1, 8], "--", color="0.6", lw=0.8)
axis.set(xlabel="dense bytes / bytes of the packed cache", ylabel="dense time / time over packed codes")
names = "circle: turboquant-4, square: int4, triangles: turboquant-2 and kivi-2, plus: klt-3, cross: klt-2"
axis.set_title(f"{names}\ndashed: time falls as bytes do", fontsize=8, loc="left")
axis.grid(alpha=0.3)
_ = axis.legend(fontsize=8)

# %% [markdown]
# Which share of the diagonal is reached? What is left differs: `turboquant` and `int4` wait for memory, `klt` for its own instructions (`docs/kernels-log.md`,
# "Which limit stopped each goal").

# %%
shares = {recipe: [] for recipe in markers}
for shape in shapes:
    rows = {row["name"]: row for row in data["shapes"][shape]["rows"]}
    dense = min((row for name, row in rows.items() if name.startswith("dense")), key=lambda row: row["milliseconds"])
    for name, row in rows.items():
        if name.split()[0] in shares and dense["nbytes"] > 5e8:
            gained = dense["milliseconds"] / row["milliseconds"]
            shares[name.split()[0]].append(gained * row["nbytes"] / dense["nbytes"])
for recipe, share in shares.items():
    print(
        f"{recipe}: {100 * min(share):.0f} to {100 * max(share):.0f} % of the diagonal on {len(share)} shapes of 0.5 GB and more"
    )

# %% [markdown]
# Rows are medians of loops of whole calls; the quartiles say how steady they were.

# %%
for shape in shapes:
    for row in data["shapes"][shape]["rows"]:
        if row["name"].startswith("turboquant-4"):
            low, high = row["quartiles"]
            print(f"{shape:18} {row['milliseconds']:.4f} ms, half of the loops within [{low:.4f}, {high:.4f}]")

# %% [markdown]
# Where does this pay in a model? `kakeya ablate speed-ceiling` measures the share of a decode step that attention takes, and what
# the whole step could gain at best. On a CPU nothing of this applies: attention over codes saves storage there, not time.

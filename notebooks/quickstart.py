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
# # What does a compressed cache cost, and what does it change?
#
# We load the bundled small model, let it read a text through a cache that is stored in packed codes, and compare its predictions
# with those of the dense model. Small model: the numbers show the mechanics, not what happens to a large one.

# %%
import jax
import jax.numpy as jnp

from kakeya_jax import CompressedCache, Recipe, cache_report
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokenizer = load_tokenizer("demo")
tokens = jnp.asarray(tokenizer.encode(bundled_text().read_text()[:6000]))[None, :1024]
tokens.shape

# %% [markdown]
# A recipe says which codec codes which layer's K and V, and which tokens stay exact. Its bytes are known from shapes alone.

# %%
recipe = Recipe.parse("key=turboquant(bits=4),value=turboquant(bits=3),sinks=4,recent=64")
report = cache_report(model.config, recipe, max_length=1024)
print(f"{report.all_in_bits_per_value:.3f} bits per coded value, everything counted")
print(
    f"{report.bytes_per_token:.0f} bytes per token, {report.compression_ratio:.2f} x smaller than bfloat16, window included"
)

# %% [markdown]
# Prefill, chunked prefill and one-token decode are one call. Here the text goes through the cache in two chunks.

# %%
cache = CompressedCache.init(model.config, recipe, batch_size=1, max_length=1024)
step = jax.jit(model.apply, donate_argnames="cache")
first, cache = step({"params": params}, tokens[:, :512], cache=cache)
second, cache = step({"params": params}, tokens[:, 512:], cache=cache)
compressed = jnp.concatenate([first, second], axis=1)
dense, _ = jax.jit(model.apply)({"params": params}, tokens)

# %% [markdown]
# KL divergence is the honest distance: the argmax can survive while the distribution has moved.

# %%
log_dense, log_compressed = jax.nn.log_softmax(dense), jax.nn.log_softmax(compressed)
kl = jnp.sum(jnp.exp(log_dense) * (log_dense - log_compressed), axis=-1)[0]
agree = jnp.mean(jnp.argmax(dense, -1) == jnp.argmax(compressed, -1))
print(f"mean KL {kl[256:].mean():.5f} nats, top-1 agreement {100 * agree:.1f} %")

# %% [markdown]
# Generation uses the same cache. The packed words are ordinary arrays: look at them.

# %%
from kakeya_jax.models.generate import generate

out = generate(model, params, tokens[:, :64], recipe=recipe, max_new_tokens=24)
print(tokenizer.decode([int(token) for token in out.tokens[0]]))
jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), cache.layers[0].key.blocks)

# %% [markdown]
# So this is what it costs and what it changes, here:

# %%
print(
    f"{report.compression_ratio:.2f} times fewer bytes than bfloat16; KL {kl[256:].mean():.4f} nats a prediction, and"
)
print(f"another first choice in {100 * (1 - agree):.1f} % of {compressed.shape[1]:,} predictions")

# %% [markdown]
# `kakeya eval` and `kakeya_jax.eval.perplexity.evaluate` do this properly: thousands of tokens, intervals, and every byte.

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
# # How does a compressed cache work with Flax NNX?
#
# The decoder is Flax Linen; the cache is a pytree and belongs to neither API. `nnx.bridge.ToNNX` makes an NNX module of the
# decoder: parameters become NNX variables, and the cache goes in and comes out as before.

# %%
import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import bridge

from kakeya_jax import CompressedCache, Recipe
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer

model, params = load("demo")
tokenizer = load_tokenizer("demo")
tokens = jnp.asarray(tokenizer.encode(bundled_text().read_text()[:2000]))[None, :384]

# %% [markdown]
# `lazy_init` traces the module once to create its variables; then they are set to the checkpoint's. Their names are those of the
# Linen parameters.

# %%
nnx_model = bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(tokens[:, :2])
nnx.update(nnx_model, params)
print(f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx_model, nnx.Param))):,} parameters")

# %% [markdown]
# Prefill through a packed cache, then token by token under `nnx.jit`. The cache is an argument and a result, so a step is
# a pure function of it.

# %%
recipe = Recipe.parse("turboquant-4,recent=64")


@nnx.jit
def step(module, tokens, cache):
    return module(tokens, cache=cache)


cache = CompressedCache.init(model.config, recipe, batch_size=1, max_length=512)
logits, cache = step(nnx_model, tokens, cache)
written = []
for _ in range(24):
    token = jnp.argmax(logits[:, -1:], axis=-1)
    written.append(int(token[0, 0]))
    logits, cache = step(nnx_model, token, cache)
print(tokenizer.decode(written))
print("tokens held:", int(cache.length[0]))

# %% [markdown]
# Is it the same as Linen's `apply`, which the rest of the library calls? To the last bit here:

# %%
linen_cache = CompressedCache.init(model.config, recipe, batch_size=1, max_length=512)
linen_logits, linen_cache = jax.jit(model.apply)({"params": params}, tokens, cache=linen_cache)
nnx_cache = CompressedCache.init(model.config, recipe, batch_size=1, max_length=512)
nnx_logits, nnx_cache = step(nnx_model, tokens, nnx_cache)
print("largest difference of logits:", float(jnp.abs(linen_logits - nnx_logits).max()))
same = jax.tree.map(lambda a, b: bool((a == b).all()), linen_cache.layers[0].key.blocks, nnx_cache.layers[0].key.blocks)
print("codes of layer 0's keys are equal:", jax.tree.leaves(same))

# %% [markdown]
# Gradients work as in any NNX model; without a cache, this is the loss that one would train with.


# %%
@nnx.jit
def loss_and_gradient(module, tokens):
    def loss(module):
        logits, _ = module(tokens[:, :-1])
        scores = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1))

    return nnx.value_and_grad(loss)(module)


loss, gradient = loss_and_gradient(nnx_model, tokens[:, :128])
norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
print(f"loss {loss:.3f} nats, gradient norm {norm:.3f}")

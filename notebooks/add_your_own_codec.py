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
# # How do I add a codec of my own?
#
# We write one in a page: channels are scaled by the block's own deviations, and each value becomes its sign with one of two
# magnitudes. Then the library checks what every codec promises, counts its bytes from shapes, and measures the model's predictions
# through a cache that stores it.

# %%
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kakeya_jax import CodecConfig, Recipe, bitpack, cache_report, register_codec
from kakeya_jax.conformance import check_codec
from kakeya_jax.numeric import EPS, finite, to_f16
from kakeya_jax.pytree import payload_field, pytree_dataclass, side_field, static_field

# %% [markdown]
# Three small classes. The **code** is what is stored: arrays marked as payload (indices) or side information (all else), so that
# bytes need no bookkeeping. The **codec** encodes and decodes one block `[n, d]`; the cache maps it over batch, heads and pages.
# The **config** is the name and the options in a recipe.


# %%
@pytree_dataclass
class SignCode:
    """Two-bit indices `[n, d / 4]`; float16 means and deviations of the channels `[d]`."""

    indices: jax.Array = payload_field()
    mean: jax.Array = side_field()
    deviation: jax.Array = side_field()


@pytree_dataclass
class SignCodec:
    config: "SignConfig" = static_field()
    head_dim: int = static_field()

    def encode(self, block, key=None):
        """The nearest of four levels; the levels use mean and deviation as stored."""
        x = finite(block)
        mean, deviation = to_f16(x.mean(axis=0)), to_f16(x.std(axis=0))
        z = (x - mean.astype(jnp.float32)) / jnp.maximum(deviation.astype(jnp.float32), EPS)
        indices = jnp.where(z > 0, 2, 0) + (jnp.abs(z) > self.config.threshold).astype(jnp.int32)
        return SignCode(indices=bitpack.pack(indices, 2), mean=mean, deviation=deviation)

    def decode(self, code):
        """`mean + deviation * level`, float32."""
        indices = bitpack.unpack(code.indices, 2, self.head_dim)
        small, large = 0.453, 1.51  # Lloyd-Max levels of a Gaussian at two bits (Max 1960, table I)
        level = jnp.where(indices % 2 == 1, large, small) * jnp.where(indices >= 2, 1.0, -1.0)
        return code.mean.astype(jnp.float32) + code.deviation.astype(jnp.float32) * level


@register_codec
@dataclasses.dataclass(frozen=True, kw_only=True)
class SignConfig(CodecConfig):
    """Sign and one of two magnitudes, scaled by channel.

    Attributes:
        threshold: deviations from the mean beyond which the larger magnitude is taken.
    """

    name: ClassVar[str] = "sign"
    source: ClassVar[str] = "this notebook"

    threshold: float = 0.982

    def build(self, head_dim, *, layer=0, stream="key", tables=None):
        if head_dim % 4:
            raise ValueError(f"sign packs four values into a byte; head_dim={head_dim} must be a multiple of 4")
        return SignCodec(config=self, head_dim=head_dim)


# %% [markdown]
# Does it keep its promises? `check_codec` tries `jit`, `vmap`, strict dtypes, blocks of zeros, of huge values and with a NaN,
# and raises with the list of what is broken.

# %%
check_codec(SignConfig(), head_dim=64)

# %% [markdown]
# What does such an error look like? Without `finite`, one NaN in a key spreads over the page:


# %%
@pytree_dataclass
class Careless(SignCodec):
    def encode(self, block, key=None):
        mean, deviation = to_f16(block.mean(axis=0)), to_f16(block.std(axis=0))
        return SignCode(indices=jnp.zeros((block.shape[0], 16), jnp.uint8), mean=mean, deviation=deviation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarelessConfig(SignConfig):
    name: ClassVar[str] = "careless"

    def build(self, head_dim, *, layer=0, stream="key", tables=None):
        return Careless(config=self, head_dim=head_dim)


try:
    check_codec(CarelessConfig())
except ValueError as error:
    print(error)

# %% [markdown]
# Registered, it is a word of recipes, with all that recipes can do: layers, keys or values alone, exact windows. Bytes come
# from shapes alone. `key@pre` codes keys before their rotary embedding, where a channel keeps its mean.

# %%
from kakeya_jax.models.checkpoint import load

model, params = load("demo")
recipe = Recipe.parse("key@pre=sign,value=sign(threshold=1.0)")
report = cache_report(model.config, recipe, max_length=4096)
print(f"{report.payload_bits_per_value:.2f} bits of payload, {report.all_in_bits_per_value:.3f} all-in")
print(f"{report.compression_ratio:.2f} x smaller at 4096 tokens, exact window included")

# %% [markdown]
# And it is measured as all others are: text runs through the cache, attention reads the packed codes.

# %%
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.tokenizer import load_tokenizer

tokens = encode_text(bundled_text(), load_tokenizer("demo"))
recipes = ["both=sign", "key@pre=sign,value=sign", "kivi-2", "turboquant-2"]
result = evaluate(model, params, tokens, recipes, context=1024, passages=3, encode_time=False)
print(f"{result.tokens_scored:,} tokens scored")
for row in result.rows:
    low, high = row.kl_ci95
    print(f"{row.recipe:24} {row.all_in_bits:.3f} bits  KL {row.kl_mean:.4f} [{low:.4f}, {high:.4f}]  {row.verdict}")

# %% [markdown]
# A codec that should stay belongs into the library: five steps in `CONTRIBUTING.md`, of which the classes above are the first.
# One that needs numbers of the model asks for them in `needs_tables`, and `kakeya calibrate` fits them.

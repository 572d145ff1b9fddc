import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import compilations, golden, run

from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.models import generate
from kakeya_jax.models.generate import _generate
from kakeya_jax.recipe import Recipe

PROMPT = np.random.default_rng(3).integers(0, 128, (2, 9), dtype=np.int32)
STEPS = 12
WIDTH = 48


def exact_cache(config, max_length=WIDTH):
    """A cache that keeps every token in float32."""
    recipe = dense_recipe(max_length)
    return CompressedCache.init(config, recipe, batch_size=2, max_length=max_length, dtype=jnp.float32)


def naive(model, params, prompts, steps=STEPS):
    """Greedy decoding by a dense forward pass over the whole text for each token."""
    text = np.zeros((2, WIDTH), np.int32)
    starts = [len(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        text[row, : starts[row]] = prompt
    for step in range(steps):
        logits = np.asarray(run(model, params, text).logits)
        for row, start in enumerate(starts):
            text[row, start + step] = np.argmax(logits[row, start + step - 1])
    return np.stack([text[row, start : start + steps] for row, start in enumerate(starts)])


def test_greedy_is_the_loop_of_dense_passes_and_its_cache_continues_the_text():
    model, params = golden("qwen2")
    first = generate(model, params, PROMPT, max_new_tokens=STEPS, cache=exact_cache(model.config))
    np.testing.assert_array_equal(first.tokens, naive(model, params, PROMPT))
    np.testing.assert_array_equal(first.lengths, [STEPS, STEPS])
    np.testing.assert_array_equal(first.cache.length, [21, 21])
    question = PROMPT[::-1] + 1
    text = np.concatenate([PROMPT, first.tokens, question], axis=1)
    second = generate(model, params, question, max_new_tokens=STEPS, cache=first.cache)
    np.testing.assert_array_equal(second.tokens, naive(model, params, text))


def test_padded_prompts_continue_as_alone():
    model, params = golden("qwen2")
    expected = naive(model, params, [PROMPT[0], PROMPT[1, :4]])
    padded, mask = np.zeros((2, 9), np.int32), np.zeros((2, 9), bool)
    padded[0], mask[0] = PROMPT[0], True
    for part in (slice(5, 9), slice(0, 4)):
        padded[1], mask[1] = 7, False
        padded[1, part], mask[1, part] = PROMPT[1, :4], True
        cache = exact_cache(model.config)
        out = generate(model, params, padded, max_new_tokens=STEPS, mask=mask, cache=cache)
        np.testing.assert_array_equal(out.tokens, expected)
        np.testing.assert_array_equal(out.cache.length, [21, 16])


def test_rows_end_at_a_stop_token():
    model, params = golden("llama-tied")
    free = np.asarray(generate(model, params, PROMPT, max_new_tokens=STEPS).tokens)
    stop = [int(free[0, 4]), 127]
    expected, lengths = free.copy(), []
    for row in range(2):
        hits = np.flatnonzero(np.isin(free[row], stop))
        lengths.append(int(hits[0]) + 1 if hits.size else STEPS)
        expected[row, lengths[-1] :] = 99
    assert min(lengths) < STEPS
    out = generate(model, params, PROMPT, max_new_tokens=STEPS, stop_tokens=stop, pad_token=99)
    np.testing.assert_array_equal(out.tokens, expected)
    np.testing.assert_array_equal(out.lengths, lengths)
    # Padding is never read: the cache ends with the stop token.
    np.testing.assert_array_equal(out.cache.length, 9 + np.asarray(lengths))


def test_seeds():
    model, params = golden("llama-tied")

    def draw(seed):
        out = generate(model, params, PROMPT[[0, 0]], max_new_tokens=STEPS, temperature=1.0, seed=seed)
        return np.asarray(out.tokens)

    np.testing.assert_array_equal(draw(1), draw(1))
    np.testing.assert_array_equal(draw(1), draw(jax.random.key(1)))
    assert np.any(draw(1) != draw(2))
    # Rows with the same prompt draw independently.
    assert np.any(draw(1)[0] != draw(1)[1])


def test_keeping_one_token_is_greedy():
    model, params = golden("llama-tied")
    greedy = generate(model, params, PROMPT, max_new_tokens=STEPS).tokens
    drawn = generate(model, params, PROMPT, max_new_tokens=STEPS, temperature=1.0, top_k=1).tokens
    np.testing.assert_array_equal(drawn, greedy)


def test_one_compilation_for_prompts_of_a_shape():
    model, params = golden("llama-tied")
    greedy = np.asarray(generate(model, params, PROMPT, max_new_tokens=STEPS).tokens)
    never = int(np.setdiff1d(np.arange(128), greedy)[0])

    def draw(prompt, temperature, top_p, stop, seed):
        options = {"temperature": temperature, "top_p": top_p, "stop_tokens": [stop], "seed": seed}
        return generate(model, params, prompt, max_new_tokens=STEPS, **options).tokens

    draw(PROMPT + 1, 0.7, 0.9, 3, 0)
    before = compilations(_generate)
    # So narrow a nucleus is one token, which makes the draw greedy.
    np.testing.assert_array_equal(draw(PROMPT, 1.3, 1e-6, never, 5), greedy)
    assert compilations(_generate) == before


def test_compressed_recipes_generate():
    model, params = golden("llama-bias")
    out = generate(model, params, PROMPT, max_new_tokens=6, recipe=Recipe.named("int8"))
    assert out.tokens.shape == (2, 6)
    assert out.cache.recipe == Recipe.named("int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k=0 must be at least 1"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p=0.0 must be in"),
        ({"max_new_tokens": 1, "mask": np.ones((2, 3), bool)}, r"mask has shape \(2, 3\)"),
        ({"max_new_tokens": 1, "mask": np.zeros((2, 9), bool)}, "at least one valid token"),
    ],
)
def test_rejects(options, message):
    model, params = golden("llama")
    with pytest.raises(ValueError, match=message):
        generate(model, params, PROMPT, **options)


def test_rejects_what_does_not_fit_the_cache_before_anything_is_lost():
    model, params = golden("llama")
    cache = exact_cache(model.config, 16)
    with pytest.raises(ValueError, match=r"max_length=16 tokens.* max_new_tokens=8 need 17"):
        generate(model, params, PROMPT, max_new_tokens=8, cache=cache)
    cache = run(model, params, PROMPT, cache).cache
    with pytest.raises(ValueError, match="need 17"):
        generate(model, params, PROMPT[:, :5], max_new_tokens=3, cache=cache)
    with pytest.raises(ValueError, match="either a cache or the recipe"):
        generate(model, params, PROMPT[:, :1], max_new_tokens=1, cache=cache, recipe=Recipe.named("int8"))
    with pytest.raises(ValueError, match="prompt_tokens has shape"):
        generate(model, params, PROMPT[0], max_new_tokens=1)

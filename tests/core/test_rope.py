"""Frequencies of every rope type, and the rotation itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling, apply_rope

PLAIN = Rope(head_dim=64, theta=10000.0)
LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def test_default_frequencies_are_the_geometric_series():
    expected = 10000.0 ** -(np.arange(32) / 32)
    assert PLAIN.frequencies.dtype == np.float32
    np.testing.assert_allclose(PLAIN.frequencies, expected, rtol=2e-7)
    assert PLAIN.attention_factor == 1.0


def test_linear_scaling_is_a_scaled_position():
    stretched = Rope(head_dim=64, scaling=LinearScaling(factor=4.0))
    x = jax.random.normal(jax.random.key(0), (5, 64))
    np.testing.assert_allclose(
        apply_rope(x, jnp.arange(5) * 4, stretched), apply_rope(x, jnp.arange(5), PLAIN), atol=1e-6
    )


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
    plain = Rope(head_dim=128, theta=500000.0)
    ratio = plain.frequencies / Rope(head_dim=128, theta=500000.0, scaling=LLAMA3).frequencies
    wavelength = 2 * math.pi / plain.frequencies
    np.testing.assert_array_equal(ratio[wavelength < 8192 / 4], 1.0)
    np.testing.assert_allclose(ratio[wavelength > 8192], 8.0, rtol=1e-6)
    between = ratio[(wavelength >= 8192 / 4) & (wavelength <= 8192)]
    assert between.size > 5
    assert np.all(np.diff(between) > 0)
    assert between.min() > 1
    assert between.max() < 8


def test_yarn_keeps_fast_channels_and_stretches_slow_ones():
    yarn = YarnScaling(factor=4.0, original_max_position_embeddings=4096)
    ratio = PLAIN.frequencies / Rope(head_dim=64, scaling=yarn).frequencies
    turns = 4096 * PLAIN.frequencies / (2 * math.pi)
    # The ramp's ends are rounded outwards to whole channels, hence one channel of slack.
    np.testing.assert_array_equal(ratio[turns > 32 * 1.4], 1.0)
    np.testing.assert_allclose(ratio[turns < 1 / 1.4], 4.0, rtol=1e-6)
    assert np.all(np.diff(ratio) >= -1e-6)
    untruncated = Rope(
        head_dim=64, scaling=YarnScaling(factor=4.0, original_max_position_embeddings=4096, truncate=False)
    )
    assert not np.allclose(PLAIN.frequencies / untruncated.frequencies, ratio, rtol=1e-3)


def test_yarn_attention_factor():
    base = {"factor": 40.0, "original_max_position_embeddings": 4096}
    assert YarnScaling(**base).attention_factor == pytest.approx(0.1 * math.log(40) + 1)
    both = YarnScaling(**base, mscale=1.0, mscale_all_dim=0.5)
    assert both.attention_factor == pytest.approx((0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1))
    assert YarnScaling(**base, explicit_attention_factor=1.25).attention_factor == 1.25
    assert YarnScaling(factor=1.0, original_max_position_embeddings=64).attention_factor == 1.0


def test_rotation_keeps_norms_and_depends_on_distance_only():
    query, key = jax.random.normal(jax.random.key(1), (2, 64))
    positions = jnp.arange(0, 2000, 100)
    queries = apply_rope(jnp.broadcast_to(query, (20, 64)), positions + 7, PLAIN)
    keys = apply_rope(jnp.broadcast_to(key, (20, 64)), positions, PLAIN)
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), jnp.linalg.norm(query), rtol=1e-6)
    scores = jnp.sum(queries * keys, axis=-1)
    np.testing.assert_allclose(scores, scores[0], atol=2e-3)
    assert abs(float(scores[0] - query @ key)) > 0.1


def test_pairs_are_half_split():
    x = jnp.zeros(8).at[1].set(1.0)
    rotated = apply_rope(x, jnp.int32(3), Rope(head_dim=8))
    angle = 3 * 10000.0 ** (-2 / 8)
    np.testing.assert_allclose(rotated[jnp.array([1, 5])], [math.cos(angle), math.sin(angle)], rtol=1e-6)


def test_attention_factor_lengthens_the_vectors():
    rope = Rope(
        head_dim=8,
        scaling=YarnScaling(factor=2.0, original_max_position_embeddings=64, explicit_attention_factor=1.5),
    )
    x = jax.random.normal(jax.random.key(2), (3, 8))
    rotated = apply_rope(x, jnp.arange(3), rope)
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), 1.5 * jnp.linalg.norm(x, axis=-1), rtol=1e-6)


def test_dtype_is_kept_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        out = apply_rope(jnp.ones((2, 3, 4, 8), jnp.bfloat16), jnp.zeros((2, 3, 1), jnp.int32), Rope(head_dim=8))
    assert out.dtype == jnp.bfloat16
    assert out.shape == (2, 3, 4, 8)


def test_equal_ropes_share_one_compilation():
    assert hash(Rope(head_dim=64, scaling=LLAMA3)) == hash(Rope(head_dim=64, scaling=LLAMA3))
    assert Rope(head_dim=64, scaling=LLAMA3) != PLAIN


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(head_dim=7), "head_dim=7 must be even"),
        (lambda: Rope(head_dim=8, theta=0.5), "theta=0.5 must be above 1"),
        (lambda: LinearScaling(factor=0.0), "linear rope: factor=0.0"),
        (lambda: YarnScaling(factor=-1.0, original_max_position_embeddings=8), "yarn rope: factor=-1.0"),
        (
            lambda: Llama3Scaling(
                factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0, original_max_position_embeddings=8
            ),
            "high_freq_factor=4.0 must be above",
        ),
    ],
)
def test_rejects(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""What a calibration has tables for."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.tables import UnservedError, serves
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.recipe import Recipe
from kakeya_jax.stream import read

OFFSET = 30_000.0
"""Of keys, in their root mean square deviation."""

PAIRS = Recipe.parse("both=klt(bits=2,block_size=16,heads_together=2)")
IN_USE = Recipe.parse("both=klt(bits=2,block_size=16,heads_together=2),sinks=2,recent=9")
PLAIN = Recipe.parse("key@pre=identity(block_size=16),value=identity(block_size=16)")
THREES = Recipe.parse("both=klt(bits=2,block_size=16,heads_together=3)")


def test_what_a_calibration_lacks_is_not_served(calibration: Calibration) -> None:
    apart = {where: found for where, found in calibration.statistics.items() if where[1] != "both"}
    without_joint = dataclasses.replace(calibration, statistics=apart)
    assert serves(calibration, PAIRS)
    assert not serves(without_joint, PAIRS)
    assert serves(without_joint, Recipe.named("klt-2"))
    assert not serves(calibration, Recipe.parse("key=kakeya(centroids=calibrated,block_size=16)"))
    with pytest.raises(UnservedError, match="without --no-joint"):
        without_joint.tables_for(PAIRS)


def test_heads_that_do_not_go_into_groups_are_not_served(calibration: Calibration) -> None:
    assert not serves(calibration, THREES)
    with pytest.raises(UnservedError, match="heads_together=3 must divide the model's 2 key/value heads"):
        calibration.tables_for(THREES)


@pytest.mark.parametrize("options", ["whiten=true", "static_mean=true,whiten=true"])
def test_keys_far_from_zero_are_whitened(calibration: Calibration, options: str) -> None:
    """A float16 holds them whitened, however far their mean is from zero; unless a rare one is out of its range."""
    found = calibration.statistics[0, "key"]
    heads, dim = found["mean"].shape
    spread = np.sqrt(np.einsum("kdd->kd", found["covariance"]))
    far = {**found, "mean": OFFSET * spread, "largest": (OFFSET + 4) * spread}
    rare = {**far, "largest": 1e6 * far["largest"], "count": np.float32(1e12)}
    recipe = Recipe.parse(f"key@pre=turboquant(bits=4,block_size=16,{options}),value=int8(block_size=16)")
    for statistics, whitened in ((found, True), (far, True), (rare, False)):
        changed = dataclasses.replace(calibration, statistics={**calibration.statistics, (0, "key"): statistics})
        maps = np.asarray(changed.tables_for(recipe)[0, "key"]["whitening"])
        assert (np.array_equal(maps, np.broadcast_to(np.eye(dim), (heads, dim, dim)))) != whitened


def test_whitening_may_be_bounded_in_condition(calibration: Calibration) -> None:
    """The maps of ``max_condition`` keep it, differ from plain ones, and still take keys there and back."""

    def maps(options: str) -> dict[str, Any]:
        recipe = Recipe.parse(
            f"key@pre=turboquant(bits=4,block_size=16,whiten=true{options}),value=int8(block_size=16)"
        )
        assert Recipe.parse(recipe.to_text()) == Recipe.from_json(recipe.to_json()) == recipe
        cache = CompressedCache.init(
            calibration.shape, recipe, batch_size=1, max_length=64, tables=calibration.tables_for(recipe)
        )
        frame = cache.layers[0].key.frame
        assert frame is not None
        return {"whitening": np.asarray(frame.whitening), "unwhitening": np.asarray(frame.unwhitening)}

    plain, bounded = maps(""), maps(",max_condition=2")
    assert (np.linalg.cond(plain["whitening"]) > 2.5).all(), "else this test shows nothing"
    assert (np.linalg.cond(bounded["whitening"]) < 2.001).all()
    back = np.einsum("kde,kef->kdf", bounded["whitening"], bounded["unwhitening"])
    np.testing.assert_allclose(back, np.broadcast_to(np.eye(back.shape[-1]), back.shape), atol=1e-5)
    np.testing.assert_array_equal(maps(",max_condition=1e6")["whitening"], plain["whitening"])


@pytest.mark.parametrize(
    ("options", "message"),
    [("whiten=true,max_condition=1", "must be above 1; 50 is usual"), ("max_condition=50", "add whiten=true")],
)
def test_bounds_that_make_no_sense_are_refused(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.parse(f"key@pre=turboquant(bits=4,{options})")


def test_a_broken_calibration_is_an_error_and_not_an_absence(calibration: Calibration) -> None:
    broken = dict(calibration.statistics)
    broken[0, "key"] = {**broken[0, "key"], "covariance": np.full_like(broken[0, "key"]["covariance"], np.nan)}
    with pytest.raises(ValueError, match="not finite"):
        serves(dataclasses.replace(calibration, statistics=broken), Recipe.named("klt-2"))


@pytest.mark.slow
def test_a_model_reads_pairs_of_heads_as_their_codec_gives_them_back(
    calibration: Calibration, model: Decoder, params: Any, passages: np.ndarray
) -> None:
    """Through the cache, however the text is cut: layer 0, whose keys and values no compressed token has touched."""
    text, coded = jnp.asarray(passages[:1]), slice(2, 2 + 5 * 16)
    tables = calibration.tables_for(IN_USE)
    dense = _read_in_chunks(model, params, text, _empty(model, PLAIN), [100])
    bulk = _read_in_chunks(model, params, text, _empty(model, IN_USE, tables), [100])
    parts = _read_in_chunks(model, params, text, _empty(model, IN_USE, tables), [50, 50])
    np.testing.assert_allclose(parts[0], bulk[0], atol=1e-4 * float(jnp.max(jnp.abs(bulk[0]))))
    assert float(jnp.max(jnp.abs(bulk[0] - dense[0]))) > 0.01, "it reads codes"
    for name in ("key", "value"):
        held, exact = (getattr(cache.layers[0], name) for cache in (bulk[1], dense[1]))
        assert held.codec.config.heads_together == 2
        assert held.codec.analysis.shape == (1, 32, 32)
        pages = read(exact)[0][:, coded].reshape(2, 5, 16, 16).swapaxes(0, 1)
        again = jax.jit(jax.vmap(lambda page, held=held: held.codec.decode(held.codec.encode(page))))(pages)
        shown = read(held)[0]
        np.testing.assert_allclose(shown[:, coded], again.swapaxes(0, 1).reshape(2, 80, 16), atol=1e-5)


def _empty(model: Decoder, recipe: Recipe, tables: Any = None) -> CompressedCache:
    return CompressedCache.init(
        model.config, recipe, batch_size=1, max_length=100, dtype=jnp.float32, tables=tables or {}
    )


def _read_in_chunks(
    model: Decoder, params: Any, text: jax.Array, cache: CompressedCache, chunks: list[int]
) -> tuple[jax.Array, CompressedCache]:
    """Logits ``[T, V]`` and the cache that is left."""
    step = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache=cache))
    logits = []
    for part in jnp.split(text, np.cumsum(chunks)[:-1], axis=1):
        output: Any = step(part, cache)
        cache = output.cache
        logits.append(output.logits[0])
    return jnp.concatenate(logits), cache

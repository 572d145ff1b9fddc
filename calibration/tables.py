"""From a calibration to the tables that the codecs of one recipe need: cheap, on the host, for any budget."""

from collections import defaultdict
from typing import Any

import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import Tables
from kakeya_jax.calibration import klt_fit, storage_fit
from kakeya_jax.calibration.artifact import Calibration, ExactTokens
from kakeya_jax.calibration.fitted_streams import fitted_name, fitted_streams
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.recipe import LayerPlan, Recipe, StreamPlan
from kakeya_jax.typing import StreamName
from kakeya_jax.whitening import whitening_tables


class UnservedError(ValueError):
    """A recipe asks for what this calibration, or the model it is of, does not have."""


def tables_for(calibration: Calibration, recipe: Recipe) -> Tables:
    """Tables by layer and stream (``"both"`` where they are coded together); nothing where no codec needs any.

    Streams that ``klt`` codes with equal configs share one bit budget, and so do layers that ``klt-storage`` codes.

    Raises:
        UnservedError: a codec needs a table that this calibration has nothing for; the message says how to fit it.
        ValueError: the statistics are not finite.
    """
    tables: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
    budgets: dict[KltConfig, list[tuple[int, StreamName]]] = defaultdict(list)
    joint: dict[KltStorageConfig, dict[int, LayerPlan]] = defaultdict(dict)
    for layer, plan in enumerate(recipe.plan(calibration.shape.num_layers)):
        if isinstance(plan.key.codec, KltStorageConfig):
            joint[plan.key.codec][layer] = plan
            continue
        for name, stream in plan.streams():
            tables[layer, name] |= _frame(calibration, layer, name, stream)
            if isinstance(stream.codec, KltConfig):
                tables[layer, name] |= _coordinates(calibration, layer, name, plan, stream.codec)
                budgets[stream.codec].append((layer, name))
    for config, plans in joint.items():
        moments = [layer_moments(calibration, layer, plan) for layer, plan in plans.items()]
        for layer, table in zip(plans, storage_fit.fit_storage(config, moments), strict=True):
            tables[layer, "both"] |= table
    for (name, stream), layers in fitted_streams(recipe, calibration.shape.num_layers).items():
        for layer in layers:
            tables[layer, name] |= calibration.fitted.get((layer, name, fitted_name(stream, layers)), {})
    for config, streams in budgets.items():
        widths = klt_fit.layouts(config, [(name, tables[layer, name]["variances"]) for layer, name in streams])
        for where, table in zip(streams, widths, strict=True):
            tables[where]["widths"] = np.asarray(table, np.int8)
    return {where: named for where, named in tables.items() if named}


def serves(calibration: Calibration, recipe: Recipe) -> bool:
    """Whether a recipe has all the tables it needs: what its codecs were fitted to may not be in the file."""
    try:
        tables = tables_for(calibration, recipe)
    except UnservedError:
        return False
    return all(
        set(stream.codec.needs_tables()) <= set(tables.get((layer, "both" if plan.joint else name), {}))
        for layer, plan in enumerate(recipe.plan(calibration.shape.num_layers))
        for name, stream in plan.streams()
    )


def layer_moments(calibration: Calibration, layer: int, plan: LayerPlan) -> storage_fit.LayerMoments:
    """What ``klt-storage`` needs to know of a layer, for the recipe's exact window."""
    key, value = (calibration.statistics[layer, name] for name in ("key", "value"))
    window = _nearest_window(calibration, _exact(plan))
    return storage_fit.LayerMoments(
        mean_key=key["mean"],
        mean_value=value["mean"],
        covariance=_joint_covariance(calibration, layer, "klt-storage"),
        fisher_key=key[f"fisher.{window}"],
        fisher_value=value[f"fisher.{window}"],
    )


def window_note(calibration: Calibration, recipe: Recipe) -> str:
    """A line of warning if the recipe's Fisher matrices were measured for another exact window; else empty."""
    for plan in recipe.plan(calibration.shape.num_layers):
        uses = any(isinstance(stream.codec, KltConfig | KltStorageConfig) for _, stream in plan.streams())
        wanted = _exact(plan)
        if uses and wanted not in calibration.exact:
            nearest = calibration.exact[_nearest_window(calibration, wanted)]
            return (
                f"recipe {str(recipe)!r} keeps {wanted} exact, but was calibrated for {nearest}: expect a larger loss; "
                f"calibrate with --window {wanted.sinks}:{wanted.recent}"
            )
    return ""


def _frame(calibration: Calibration, layer: int, name: StreamName, stream: StreamPlan) -> dict[str, Any]:
    """What ``static_mean``, ``whiten`` and attention weights need."""
    config, found = stream.codec, calibration.statistics[layer, name]
    needed = config.needs_tables()
    tables: dict[str, Any] = {}
    if config.static_mean:
        post = stream.rope == "post"
        tables["static_mean"] = found["mean"] * np.float32(calibration.rope_factor if post else 1.0)
        tables["rope_frequencies"] = np.asarray(calibration.rope_frequencies, np.float32)
    if config.whiten and name == "key":
        mean = np.asarray(found["mean"], np.float64)
        centered = 1.0 if config.static_mean else 0.0
        spread = mean[:, :, None] * mean[:, None, :]
        tables |= whitening_tables(
            jnp.asarray(found["query"]),
            key_moment=jnp.asarray(found["covariance"] + (1.0 - centered) * spread, jnp.float32),
            # Magnitudes are those of keys with their mean: without it they are at most so large, and far from zero much
            # smaller. What tells so is the count.
            key_largest=jnp.asarray(found["largest"] + centered * np.abs(mean), jnp.float32),
            key_count=float(found["count"]),
            max_condition=config.max_condition,
        )
    if "query_second_moment" in needed:
        tables["query_second_moment"] = np.mean(calibration.statistics[layer, "key"]["query"], axis=0)
    return tables


def _joint_covariance(calibration: Calibration, layer: int, codec: str) -> np.ndarray:
    both = calibration.statistics.get((layer, "both"))
    if both is None:
        raise UnservedError(
            f"{codec} with heads together needs the covariance of all heads, which this calibration was made without; "
            "calibrate again, without --no-joint"
        )
    return both["covariance"]


def _coordinates(
    calibration: Calibration, layer: int, name: StreamName, plan: LayerPlan, config: KltConfig
) -> dict[str, np.ndarray]:
    found = calibration.statistics[layer, name]
    window = _nearest_window(calibration, _exact(plan))
    covariance = found["covariance"]
    if config.heads_together > 1:
        heads = len(found["mean"])
        if heads % config.heads_together:
            raise UnservedError(
                f"{config.name}: heads_together={config.heads_together} must divide the model's {heads} key/value heads"
            )
        half = found["mean"].size
        here = slice(0, half) if name == "key" else slice(half, 2 * half)
        covariance = _joint_covariance(calibration, layer, config.name)[here, here]
    return klt_fit.coordinates(
        config,
        name,
        found["mean"],
        covariance,
        found[f"fisher.{window}"],
        np.asarray(calibration.rope_frequencies),
    )


def _exact(plan: LayerPlan) -> ExactTokens:
    return ExactTokens(sinks=plan.sinks, recent=plan.recent, page=plan.page)


def _nearest_window(calibration: Calibration, wanted: ExactTokens) -> int:
    """The window that keeps most nearly as many recent tokens exact as the recipe does."""

    def distance(index: int) -> tuple[float, int]:
        have = calibration.exact[index]
        mean = [each.recent + (each.page - 1) / 2 for each in (have, wanted)]
        return abs(np.log(mean[0] / mean[1])), abs(have.sinks - wanted.sinks)

    return min(range(len(calibration.exact)), key=distance)

"""One pass over training text: passage after passage, on one device or several, resumed where it stopped."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.calibration import collect, differences
from kakeya_jax.calibration.artifact import LayerStream, text_hash
from kakeya_jax.calibration.differences import Sensitivity
from kakeya_jax.calibration.merge import merge_statistics
from kakeya_jax.calibration.resume import Resume
from kakeya_jax.models.probe import coded_for
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.stream import Geometry

MOST_DIFFERENCE_PASSAGES = 4
"""Passages for finite differences: each takes a forward pass for every head of every layer, twice."""

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and what comes next."""

_Named = dict[LayerStream, dict[str, np.ndarray]]


@pytree_dataclass
class _Sums:
    """What an unfinished run holds.

    Attributes:
        halves: of even and of odd passages.
        sensitivities: of even and of odd passages, each ``[windows, layers, 2, K]``; None with a backward pass.
    """

    halves: tuple[collect.Statistics, ...]
    sensitivities: tuple[Sensitivity, ...] | None


@dataclasses.dataclass(kw_only=True)
class Run:
    """One pass over the text; see ``fit`` for the attributes."""

    model: Any
    params: Any
    passages: np.ndarray
    windows: tuple[Geometry, ...]
    samples: int
    seed: int
    joint: bool
    backward: bool
    devices: list[Any]
    file: Resume | None
    progress: Progress
    _resumed: int = 0

    def halves(self) -> tuple[_Named, _Named]:
        """Statistics of even and of odd passages."""
        start = self._empty()
        loaded = None if self.file is None else self.file.load(start)
        self._resumed, sums = loaded or (0, start)
        sums = self._moments(sums)
        halves = [as_arrays(half) for half in sums.halves]
        if not self.backward:
            halves = self._differences(sums, halves)
        self._report(self._steps, "fitting")
        return halves[0], halves[1]

    def _moments(self, sums: _Sums) -> _Sums:
        count = len(self.devices)
        windows = self.windows if self.backward else ()
        step = jax.jit(
            functools.partial(collect.update, self.model, windows=windows, samples=self.samples), donate_argnums=1
        )
        params = [jax.device_put(self.params, device) for device in self.devices]
        held = self._deal(sums.halves)
        for first in range(self._resumed, len(self.passages), count):
            group = range(first, min(first + count, len(self.passages)))
            self._report(first, f"passage {first + 1}/{len(self.passages)}")
            for slot, index in enumerate(group):
                key = self._key(self.passages[index])
                passage, key = jax.device_put((jnp.asarray(self.passages[index]), key), self.devices[slot])
                held[slot][index % 2] = step(params[slot], held[slot][index % 2], passage, key)
            jax.block_until_ready(held)
            if self.file is not None and (self.file.is_due() or group[-1] + 1 == len(self.passages)):
                sums = dataclasses.replace(sums, halves=self._gather(held))
                self.file.save(group[-1] + 1, sums)
                held = self._deal(sums.halves)
        return dataclasses.replace(sums, halves=self._gather(held))

    def _differences(self, sums: _Sums, halves: list[_Named]) -> list[_Named]:
        """The halves with Fisher matrices from finite differences."""
        config, whole = self.model.config, merge_statistics(*halves)
        of_values = differences.value_shapes(config, self.params)
        frequencies, length = config.rope.frequencies, self.passages.shape[1]
        shapes = [
            [
                np.stack([differences.key_shapes(whole[layer, "key"]["query"], frequencies, each, length), of_value])
                for layer, of_value in enumerate(of_values)
            ]
            for each in self.windows
        ]
        deviations = [
            np.stack([np.sqrt(np.einsum("kdd->kd", whole[layer, name]["covariance"])) for name in ("key", "value")])
            for layer in range(config.num_layers)
        ]
        reference_of = jax.jit(functools.partial(differences.log_probabilities, self.model))
        measures = [jax.jit(functools.partial(differences.measure, self.model, window=each)) for each in self.windows]
        assert sums.sensitivities is not None
        found = jax.tree.map(np.array, sums.sensitivities)
        reference, reference_index = None, -1
        for step in range(max(self._resumed, len(self.passages)), self._steps):
            place = step - len(self.passages)
            window, rest = place % len(self.windows), place // len(self.windows)
            index, layer = rest // config.num_layers, rest % config.num_layers
            self._report(step, f"differences: passage {index + 1}/{self._difference_passages}, layer {layer}")
            passage = jnp.asarray(self.passages[index])
            if reference_index != index:
                reference, reference_index = reference_of(self.params, passage), index
            key = jax.random.fold_in(self._key(self.passages[index]), layer)
            each = measures[window](
                self.params, passage, reference, key, layer, deviations[layer], shapes[window][layer]
            )
            found[index % 2].change[window, layer] += np.asarray(each.change)
            found[index % 2].energy[window, layer] += np.asarray(each.energy)
            if self.file is not None and self.file.is_due():
                self.file.save(step + 1, dataclasses.replace(sums, sensitivities=found))
        for half, named in enumerate(halves):
            passages = len(range(half, self._difference_passages, 2))
            for window, geometry in enumerate(self.windows):
                coded = np.sum(np.any(np.asarray(coded_for(geometry, length)), axis=0))
                scale = np.asarray(found[half].scale()[window])
                for layer, shape in enumerate(shapes[window]):
                    for stream, name in enumerate(("key", "value")):
                        named[layer, name][f"fisher.{window}"] = scale[layer, stream][:, None, None] * shape[stream]
                        named[layer, name][f"fisher.{window}.count"] = np.asarray(coded * passages, np.float32)
        return halves

    def _key(self, passage: np.ndarray) -> jax.Array:
        """Draws depend on the passage and not on its place, so that parts of a text add up to the whole of it."""
        return jax.random.fold_in(jax.random.key(self.seed), int(text_hash(passage)[:8], 16))

    @property
    def _difference_passages(self) -> int:
        return min(MOST_DIFFERENCE_PASSAGES, len(self.passages))

    @property
    def _steps(self) -> int:
        if self.backward:
            return len(self.passages)
        return len(self.passages) + self._difference_passages * self.model.config.num_layers * len(self.windows)

    def _report(self, done: int, what: str) -> None:
        """Steps of this call only, for the time left is reckoned from them."""
        self.progress(done - self._resumed, self._steps - self._resumed, what)

    def _empty(self) -> _Sums:
        config = self.model.config
        sensitivities = None
        if not self.backward:
            shape = (len(self.windows), config.num_layers, 2, config.num_kv_heads)
            sensitivities = (Sensitivity.zeros(shape),) * 2
        return _Sums(halves=(self._nothing(), self._nothing()), sensitivities=sensitivities)

    def _nothing(self) -> collect.Statistics:
        return collect.init(self.model.config, len(self.windows) if self.backward else 0, joint=self.joint)

    def _deal(self, halves: tuple[collect.Statistics, ...]) -> list[list[collect.Statistics]]:
        """Every device's own sums of even and odd passages: the first goes on with ``halves``."""
        others = [[self._nothing(), self._nothing()] for _ in self.devices[1:]]
        return [
            jax.device_put(each, device) for each, device in zip([list(halves), *others], self.devices, strict=True)
        ]

    def _gather(self, held: list[list[collect.Statistics]]) -> tuple[collect.Statistics, ...]:
        """The sums of all devices, on the first."""
        halves = held[0]
        for other in held[1:]:
            moved = jax.device_put(other, self.devices[0])
            halves = [
                tuple(a.merge(b) for a, b in zip(half, more, strict=True))
                for half, more in zip(halves, moved, strict=True)
            ]
        return tuple(halves)


def as_arrays(statistics: collect.Statistics) -> _Named:
    """Named arrays of ``Calibration.statistics``; symmetric matrices are so bit by bit."""
    named: dict[LayerStream, dict[str, Any]] = {}
    for index, layer in enumerate(statistics):
        for stream, moments, fishers in (
            ("key", layer.key, layer.key_fisher),
            ("value", layer.value, layer.value_fisher),
        ):
            named[index, stream] = {
                "mean": moments.mean.value(),
                "covariance": _symmetric(moments.covariance()),
                "largest": moments.largest,
                "count": moments.count.value(),
            }
            for window, fisher in enumerate(fishers):
                named[index, stream][f"fisher.{window}"] = _symmetric(fisher.value())
                named[index, stream][f"fisher.{window}.count"] = fisher.count.value()
        named[index, "key"]["query"] = _symmetric(layer.query.value())
        named[index, "key"]["query.count"] = layer.query.count.value()
        if layer.both is not None:
            named[index, "both"] = {"covariance": _symmetric(layer.both.covariance()[0])}
    return jax.tree.map(np.asarray, named)


def _symmetric(matrices: jax.Array) -> jax.Array:
    return 0.5 * (matrices + jnp.swapaxes(matrices, -1, -2))

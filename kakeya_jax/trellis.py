"""Trellis codes that decode without a state: a value's subset of levels follows from a few branch bits before it.

Trellis-coded quantisation (Marcellin and Fischer 1990) gives each value of a run one *branch bit*; which of four
subsets of a code book the value takes its level from depends on that bit and those before it. A run has twice the
levels of a scalar quantiser at the same bits, and the encoder looks for the branches that cost least (Viterbi 1967).

The codes are those that Ungerboeck (1982) found for amplitude modulation, written without feedback: the subset is
``z0 + 2 z1``, where ``z0`` and ``z1`` are each the parity of a few of the last bits. So any value decodes by itself.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array, Float, Int

_Bit = TypeVar("_Bit", int, Array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrellisCode:
    """Which branch bits decide about a subset; hashable.

    Attributes:
        memory: bits before a value's own that it depends on, at most 5.
        low: how many values ago the bits were whose parity is ``z0``: 0 is the value's own bit.
        high: the same of ``z1``; it takes in the oldest bit.
    """

    memory: int
    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def states(self) -> int:
        """Of the encoder."""
        return 2**self.memory

    def subsets(self, branches: Int[Array, "T *runs"]) -> Int[Array, "T *runs"]:
        """The subset of every value, 0 to 3, from the branch bits of runs before which all bits were 0."""
        length = len(branches)
        padded = jnp.concatenate([jnp.zeros((self.memory, *branches.shape[1:]), branches.dtype), branches])
        return self._subset([padded[self.memory - ago :][:length] for ago in range(self.memory + 1)])

    def best_branches(self, cost: Float[Array, "T 4 *runs"]) -> Int[Array, "T *runs"]:
        """The branch bits, int32, of the cheapest runs.

        Args:
            cost: of taking each value from each subset; finite. Where all four are equal a value has no say, so runs
                may be padded at their end.
        """
        runs = cost.shape[2:]
        word = jnp.uint8 if self.states <= 8 else jnp.uint32  # a bit of every state

        def forward(totals: list[Array], cost: Array) -> tuple[list[Array], Array]:
            best, oldest_bits = [], jnp.zeros(runs, word)
            for state in range(self.states):
                of_zero, of_one = (
                    totals[self._before(state, oldest)] + cost[self._subset([*self._bits(state), oldest])]
                    for oldest in (0, 1)
                )
                best.append(jnp.minimum(of_zero, of_one))
                oldest_bits |= (of_one < of_zero).astype(word) << state
            return best, oldest_bits

        def backward(state: Array, oldest_bits: Array) -> tuple[Array, Array]:
            oldest = (oldest_bits >> state.astype(word)).astype(jnp.int32) & 1
            return self._before(state, oldest), state & 1

        start = [jnp.full(runs, jnp.inf if state else 0.0, cost.dtype) for state in range(self.states)]
        totals, survivors = jax.lax.scan(forward, start, cost)
        last = jnp.argmin(jnp.stack(totals), axis=0).astype(jnp.int32)
        return jax.lax.scan(backward, last, survivors, reverse=True)[1]

    def _subset(self, bits: Sequence[_Bit]) -> _Bit:
        """Of a value, from its own bit and those before it, the newest first."""
        low, high = (functools.reduce(operator.xor, [bits[ago] for ago in taps]) for taps in (self.low, self.high))
        return low | high << 1

    def _bits(self, state: int) -> list[int]:
        """The last bits: a state is those, the newest lowest."""
        return [state >> ago & 1 for ago in range(self.memory)]

    def _before(self, state: _Bit, oldest: _Bit) -> _Bit:
        """The state one value ago; the two that lead to a state differ in the bit that it has forgotten."""
        return state >> 1 | oldest << self.memory - 1


CODES: Mapping[int, TrellisCode] = {
    4: TrellisCode(memory=2, low=(1,), high=(0, 2)),
    8: TrellisCode(memory=3, low=(2,), high=(0, 1, 3)),
    16: TrellisCode(memory=4, low=(2,), high=(0, 1, 4)),
    32: TrellisCode(memory=5, low=(3,), high=(0, 2, 5)),
}
"""By the number of their states."""

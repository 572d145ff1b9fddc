"""Verdicts: thresholds fixed before anything is measured, and named in every result.

========== ============================== ============================== ===============================
name       ACCEPT                         MARGINAL                       for
========== ============================== ============================== ===============================
default    |dPPL| <= 1 %, top-1 >= 95 %   |dPPL| <= 3 %, top-1 >= 85 %   everything we publish
star       |dPPL| <= 3 %, top-1 >= 85 %   |dPPL| <= 10 %, top-1 >= 75 %  "ACCEPT*" of published reports
perplexity |dPPL| <= 3 %                  |dPPL| <= 10 %                 reports that gate only perplexity
========== ============================== ============================== ===============================
"""

import dataclasses
import math
import re

REJECT = "REJECT"

NOTHING_CODED = "NOTHING CODED"
"""Instead of a verdict, where a context fits into the exact window: such a row tests nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One verdict and what a row must reach for it.

    Attributes:
        verdict: what to print.
        max_delta_ppl_percent: largest absolute perplexity change in percent.
        min_top1_percent: smallest top-1 agreement in percent.
    """

    verdict: str
    max_delta_ppl_percent: float
    min_top1_percent: float = 0.0

    def passes(self, delta_ppl_percent: float, top1_agreement: float) -> bool:
        """Whether a row passes; numbers that are not finite never do."""
        return abs(delta_ppl_percent) <= self.max_delta_ppl_percent and 100 * top1_agreement >= self.min_top1_percent

    def __str__(self) -> str:
        """One phrase for table footers."""
        top1 = f", top-1 >= {self.min_top1_percent:g} %" if self.min_top1_percent else ""
        return f"{self.verdict}: |dPPL| <= {self.max_delta_ppl_percent:g} %{top1}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
    """Gates from strict to loose; a row gets the first that it passes, else ``REJECT``."""

    name: str
    gates: tuple[Gate, ...]

    def __post_init__(self) -> None:
        limits = [gate.max_delta_ppl_percent for gate in self.gates]
        floors = [gate.min_top1_percent for gate in self.gates]
        for values, low, high in ((limits, 0, math.inf), (floors, 0, 100)):
            if any(not low <= value <= high for value in values):
                raise ValueError(f"gates {self.name!r}: dPPL limits must be >= 0 and top-1 floors between 0 and 100")
        if limits != sorted(limits) or floors != sorted(floors, reverse=True):
            raise ValueError(f"gates {self.name!r}: write the strict gate first and the looser ones after it")

    def verdict(self, delta_ppl_percent: float, top1_agreement: float) -> str:
        """The verdict for a row.

        Args:
            delta_ppl_percent: signed perplexity change in percent.
            top1_agreement: fraction of tokens, 0 to 1, with the same most likely next token.
        """
        for gate in self.gates:
            if gate.passes(delta_ppl_percent, top1_agreement):
                return gate.verdict
        return REJECT

    def __str__(self) -> str:
        """One line for table footers."""
        return f"gates '{self.name}': " + "; ".join(str(gate) for gate in self.gates) + f"; else {REJECT}"


def _pair(name: str, accept: tuple[float, float], marginal: tuple[float, float]) -> Gates:
    return Gates(
        name=name,
        gates=(
            Gate(verdict="ACCEPT", max_delta_ppl_percent=accept[0], min_top1_percent=accept[1]),
            Gate(verdict="MARGINAL", max_delta_ppl_percent=marginal[0], min_top1_percent=marginal[1]),
        ),
    )


NAMED_GATES = {
    gates.name: gates
    for gates in (
        _pair("default", (1, 95), (3, 85)),
        _pair("star", (3, 85), (10, 75)),
        _pair("perplexity", (3, 0), (10, 0)),
    )
}

_GATE = re.compile(r"([A-Za-z][\w*-]*)=([\d.]+)(?:/([\d.]+))?")


def parse_gates(text: str) -> Gates:
    """Named gates, or thresholds in percent as ``VERDICT=DPPL[/TOP1],...``: ``accept=0.5/98,marginal=2/90``.

    Raises:
        ValueError: neither a name nor thresholds; the message lists the names.
    """
    if text in NAMED_GATES:
        return NAMED_GATES[text]
    gates = []
    for item in text.split(","):
        match = _GATE.fullmatch(item.strip())
        if match is None:
            raise ValueError(
                f"gates {text!r}: name one of {', '.join(NAMED_GATES)}, or write accept=1/95,marginal=3/85 "
                "(largest |dPPL| in percent / smallest top-1 in percent)"
            )
        verdict, delta, top1 = match.groups()
        gates.append(
            Gate(
                verdict=verdict.upper(),
                max_delta_ppl_percent=float(delta),
                min_top1_percent=float(top1 or 0),
            )
        )
    return Gates(name=text, gates=tuple(gates))

"""Named recipes of the calibrated transform codec: a bit budget in the name.

``klt-N`` is the fast form, ``klt-pairs-N`` the same with heads coded two by two, ``klt-quality-N`` the form that
reconstructs keys; ``klt-trellis-N`` is that with the channels of a token on a trellis, ``klt-trellis-pairs-N`` with
heads two by two as well. ``N`` is the mean payload in bits per value over all layers and heads. Token scales and page
means come on top: 1/8 bit at head dimension 128. ``klt-storage-N`` is entropy-coded in files; there ``N`` is what
calibration text takes, everything included.

A few budgets are listed; ``N`` may be any that the codec takes, written as briefly as it can be: ``klt-3.5``.
"""

import re
from collections.abc import Callable

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.recipe import Recipe, Rule

BUDGETS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
"""Mean payload bits that have a name."""

STORAGE_BUDGETS = (0.5, 1.0, 2.0, 3.0)
"""Mean bits of the entropy-coded form that have a name."""

TRELLIS_BUDGETS = (1.0, 2.0, 3.0, 4.0)
"""Mean payload bits on a trellis that have a name."""


def klt_recipes() -> dict[str, Callable[[], Recipe]]:
    """All of them, smallest first."""
    budgets = {
        **dict.fromkeys(("klt", "klt-pairs", "klt-quality"), BUDGETS),
        **dict.fromkeys(("klt-trellis", "klt-trellis-pairs"), TRELLIS_BUDGETS),
        "klt-storage": STORAGE_BUDGETS,
    }
    return {f"{form}-{bits:g}": _of(form, bits) for form, listed in budgets.items() for bits in listed}


def klt_recipe(name: str) -> Callable[[], Recipe] | None:
    """The recipe of ``klt-N``, ``klt-pairs-N`` and so on; None for other names.

    ``N`` is any number. Calling it raises a ``ValueError`` if the codec does not take that budget.
    """
    match = _NAME.fullmatch(name)
    return None if match is None else _of(match[1], float(match[2]))


_FORMS: dict[str, Callable[[float], CodecConfig]] = {
    "klt": lambda bits: KltConfig(bits=bits),
    "klt-pairs": lambda bits: KltConfig(bits=bits, heads_together=2),
    "klt-quality": lambda bits: KltConfig(bits=bits, form="quality"),
    "klt-trellis": lambda bits: KltConfig(bits=bits, form="quality", trellis=True),
    "klt-trellis-pairs": lambda bits: KltConfig(bits=bits, form="quality", trellis=True, heads_together=2),
    "klt-storage": lambda bits: KltStorageConfig(bits=bits),
}

_NAME = re.compile(rf"({'|'.join(_FORMS)})-((?:0|[1-9]\d*)(?:\.\d*[1-9])?)")


def _of(form: str, bits: float) -> Callable[[], Recipe]:
    return lambda: Recipe(rules=(Rule(codec=_FORMS[form](bits)),))

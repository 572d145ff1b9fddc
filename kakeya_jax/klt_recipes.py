"""Named recipes of the calibrated transform codec: a bit budget in the name.

``klt-N`` is the fast form, ``klt-pairs-N`` the same with heads coded two by two, ``klt-quality-N`` the form that
reconstructs keys; ``N`` is the mean payload in bits per
value over all layers and heads. Token scales and page means come on top: 1/8 bit at head dimension 128.
``klt-storage-N`` is entropy-coded in files; there ``N`` is what calibration text takes, everything included.
"""

from collections.abc import Callable

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.recipe import Recipe, Rule

BUDGETS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
"""Mean payload bits that have a name."""

STORAGE_BUDGETS = (0.5, 1.0, 2.0, 3.0)
"""Mean bits of the entropy-coded form that have a name."""


def klt_recipes() -> dict[str, Callable[[], Recipe]]:
    """All of them, smallest first."""
    named = {f"klt-{bits:g}": _of(KltConfig(bits=bits)) for bits in BUDGETS}
    named |= {f"klt-pairs-{bits:g}": _of(KltConfig(bits=bits, heads_together=2)) for bits in BUDGETS}
    named |= {f"klt-quality-{bits:g}": _of(KltConfig(bits=bits, form="quality")) for bits in BUDGETS}
    return named | {f"klt-storage-{bits:g}": _of(KltStorageConfig(bits=bits)) for bits in STORAGE_BUDGETS}


def _of(config: CodecConfig) -> Callable[[], Recipe]:
    return lambda: Recipe(rules=(Rule(codec=config),))

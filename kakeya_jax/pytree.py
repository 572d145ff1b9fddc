"""Frozen dataclasses that are JAX pytrees, and the marks their fields carry.

A *code* (the stored form of a block) marks each array as payload or side information; a *codec* marks each table as
fitted (must be stored with the cache) or seeded (made again from a seed). Accounting reads the marks, so no codec
counts its own bytes.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

_T = TypeVar("_T")


def static_field(**kwargs: Any) -> Any:
    """A field that is part of the tree's structure: hashable, a change of it retraces."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def payload_field(**kwargs: Any) -> Any:
    """An array of a code that holds the indices themselves (counted as payload bits)."""
    return dataclasses.field(metadata={"payload": True}, **kwargs)


def side_field(**kwargs: Any) -> Any:
    """An array of a code that holds scales, norms, bases, means, ids or outliers (counted in all-in bits only)."""
    return dataclasses.field(metadata={"payload": False}, **kwargs)


def fitted_field(**kwargs: Any) -> Any:
    """A table of a codec that came from calibration: charged once for each layer and stream that uses it."""
    return dataclasses.field(metadata={"fitted": True}, **kwargs)


def seeded_field(**kwargs: Any) -> Any:
    """A table of a codec that a seed or a formula makes again: held in memory, not charged as stored bytes."""
    return dataclasses.field(metadata={"fitted": False}, **kwargs)


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(dataclasses.field, static_field, payload_field, side_field, fitted_field, seeded_field),
)
def pytree_dataclass(cls: type[_T]) -> type[_T]:
    """Makes ``cls`` a frozen, keyword-only dataclass and registers it as a pytree; ``static_field`` s are metadata.

    No validation belongs in ``__post_init__``: JAX rebuilds such objects with tracers, shapes and ``None`` in them.
    """
    frozen = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    return jax.tree_util.register_dataclass(frozen)

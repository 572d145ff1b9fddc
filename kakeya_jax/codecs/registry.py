"""Codec configs by name."""

import dataclasses
from typing import Any

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.besicovitch import BesicovitchConfig
from kakeya_jax.codecs.identity import IdentityConfig
from kakeya_jax.codecs.integer import Int4Config, Int8Config
from kakeya_jax.codecs.kakeya import KakeyaConfig
from kakeya_jax.codecs.kivi import KiviConfig
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.codecs.lattice import LatticeConfig
from kakeya_jax.codecs.riemannian import RiemannianConfig
from kakeya_jax.codecs.turboquant import TurboQuantConfig

_CONFIGS: dict[str, type[CodecConfig]] = {
    config.name: config
    for config in (
        IdentityConfig,
        Int8Config,
        Int4Config,
        KiviConfig,
        TurboQuantConfig,
        LatticeConfig,
        KakeyaConfig,
        BesicovitchConfig,
        RiemannianConfig,
        KltConfig,
        KltStorageConfig,
    )
}


def codec_names() -> tuple[str, ...]:
    """The names that recipes may use."""
    return tuple(_CONFIGS)


def codec_class(name: str) -> type[CodecConfig]:
    """The config class of a method.

    Raises:
        ValueError: no method has that name; the message lists those that exist.
    """
    if name not in _CONFIGS:
        raise ValueError(f"unknown codec {name!r}; known codecs: {', '.join(_CONFIGS)}")
    return _CONFIGS[name]


def codec_config(name: str, **options: Any) -> CodecConfig:
    """The config of method ``name`` with ``options``.

    Raises:
        ValueError: unknown name or option, or an option outside its range.
    """
    cls = codec_class(name)
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"codec {name!r} has no option {', '.join(unknown)}; its options: {', '.join(known)}")
    return cls(**options)

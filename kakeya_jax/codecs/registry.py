"""Codec configs by name."""

import dataclasses
from typing import Any

from kakeya_jax.close_names import did_you_mean
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.besicovitch import BesicovitchConfig
from kakeya_jax.codecs.fp8 import Fp8Config
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
        Fp8Config,
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
        raise ValueError(f"unknown codec {name!r};{did_you_mean(name, _CONFIGS)} known codecs: {', '.join(_CONFIGS)}")
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


def register_codec(config: type[CodecConfig]) -> type[CodecConfig]:
    """Makes a method of your own known by its name, to recipes as text, to files and to the command line; a decorator.

    Recipes built in Python (``Rule(codec=MyConfig())``) need no name. Whoever loads a cache file of the method must
    have registered it, too.

    Args:
        config: a frozen dataclass derived from ``CodecConfig``, with a ``name`` and a ``source``.

    Returns:
        The class itself.

    Raises:
        ValueError: another method has that name, or the class is no config with a name and a source.
    """
    if not dataclasses.is_dataclass(config) or not issubclass(config, CodecConfig):
        raise ValueError(f"{config!r} must be a frozen dataclass derived from CodecConfig")
    missing = [field for field in ("name", "source") if not isinstance(getattr(config, field, None), str)]
    if missing:
        raise ValueError(f"{config.__name__} must set {' and '.join(missing)}, class attributes of type str")
    held = _CONFIGS.get(config.name)
    # Running a notebook's cell again makes its class again.
    if held is not None and (held.__module__, held.__qualname__) != (config.__module__, config.__qualname__):
        raise ValueError(f"the name {config.name!r} is taken by {held.__module__}.{held.__qualname__}; choose another")
    _CONFIGS[config.name] = config
    return config

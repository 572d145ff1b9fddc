"""``check_codec`` passes the library's codecs and names every promise that a broken one breaks."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

from kakeya_jax import Recipe, codec_config, codec_names, register_codec
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs import registry
from kakeya_jax.conformance import check_codec
from kakeya_jax.numeric import finite
from kakeya_jax.pytree import payload_field, pytree_dataclass, side_field, static_field


@pytree_dataclass
class Code:
    values: jax.Array = payload_field()


@pytree_dataclass
class SideOnly:
    values: jax.Array = side_field()


@pytree_dataclass
class Halves:
    """Stores bfloat16, and breaks what its config says."""

    config: Any = static_field()

    def encode(self, block: jax.Array, key: jax.Array | None = None) -> Any:
        del key
        fault = self.config.fault
        x = block if fault == "finite" else finite(block)
        if fault == "calls":
            self.config.calls.append(None)
            x = x * len(self.config.calls)
        if fault == "jit" and isinstance(x, Tracer):
            x = 1.5 * x
        if fault == "promotion":
            x = x + jnp.zeros(x.shape, jnp.float16)
        return (SideOnly if fault == "payload" else Code)(values=x.astype(jnp.bfloat16))

    def decode(self, code: Any) -> jax.Array:
        x = code.values.astype(jnp.float16 if self.config.fault == "dtype" else jnp.float32)
        return x + 1e6 if self.config.fault == "zeros" else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalvesConfig(CodecConfig):
    name: ClassVar[str] = "halves"
    source: ClassVar[str] = "this test"
    calls: ClassVar[list[None]] = []

    fault: str = ""
    block_size: int = 32

    def build(self, head_dim: int, **options: Any) -> Halves:
        del head_dim, options
        return Halves(config=self)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CONFIGS", dict(registry._CONFIGS))
    register_codec(HalvesConfig)


def test_a_sound_codec_is_measured() -> None:
    report = check_codec(HalvesConfig())
    assert (report.payload_bits, report.all_in_bits) == (16, 16)
    assert 0 < report.value_error < 1e-5
    assert 0 < report.key_error < 1e-5


@pytest.mark.parametrize("codec", ["int4", pytest.param("lattice", marks=pytest.mark.slow)])
def test_codecs_of_the_library_keep_their_promises(codec: str) -> None:
    report = check_codec(codec_config(codec))
    assert 0 < report.payload_bits < report.all_in_bits < 16
    assert 0 < report.value_error < 0.2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("dtype", "decode gives float16"),
        ("payload", "no stored array is marked payload_field"),
        ("calls", "encoding twice gives two codes"),
        ("jit", "jit changes the result"),
        ("promotion", "strict dtype promotion fails"),
        ("finite", "a block of a NaN"),
        ("zeros", "a block of zeros is decoded to values up to 1e"),
    ],
)
def test_broken_promises_are_named(fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_codec(HalvesConfig(fault=fault))


def test_codecs_of_all_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="codes all heads at once"):
        check_codec(codec_config("klt"))


@pytest.mark.usefixtures("registered")
def test_registered_codecs_are_known_to_recipes() -> None:
    recipe = Recipe.parse("key=halves,value=int4,recent=1")
    assert recipe.rules[0].codec == HalvesConfig()
    assert "halves" in codec_names()
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert register_codec(HalvesConfig) is HalvesConfig  # again: a notebook's cell run twice


@pytest.mark.usefixtures("registered")
def test_names_are_registered_once() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(HalvesConfig):
        name: ClassVar[str] = "int4"

    with pytest.raises(ValueError, match=r"'int4' is taken by kakeya_jax.codecs.integer.Int4Config"):
        register_codec(Other)


def test_only_configs_are_registered() -> None:
    with pytest.raises(ValueError, match="must be a frozen dataclass derived from CodecConfig"):
        register_codec(int)  # pyright: ignore[reportArgumentType]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Nameless(CodecConfig):
        block_size: int = 32

    with pytest.raises(ValueError, match="Nameless must set name and source"):
        register_codec(Nameless)

"""Recipes: which codec codes which layer's K and V, and which tokens stay exact.

A recipe is data: frozen, hashable, equal when it means the same, with a JSON form (lossless) and a compact text form
for the command line::

    kakeya-pareto
    turboquant-3,recent=1,sinks=0
    key=kakeya(bits=4),value=besicovitch(direction_bits=3,magnitude_bits=4),boundary=2,sinks=4,recent=128
    key[0,-1]=identity,key@pre=turboquant(bits=3),value=int4(affine=true)
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.identity import IdentityConfig
from kakeya_jax.codecs.registry import codec_config
from kakeya_jax.typing import RopeClass, StreamName

DEFAULT_SINKS = 4
DEFAULT_RECENT = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Codes some layers' streams with one codec.

    Attributes:
        codec: the method and its settings.
        stream: ``"key"``, ``"value"`` or ``"both"``.
        layers: layers it applies to: indices, negative ones counted from the end, or shares of the depth between 0 and
            1 (0.25 is layer 7 of 28, rounded down), which any number of layers has. ``None`` means all.
        rope: whether K is stored before (``"pre"``) or after (``"post"``) its rotary embedding; ``None`` takes the
            codec's own class. Values have no rotary embedding and ignore it.
    """

    codec: CodecConfig
    stream: str = "both"
    layers: tuple[int | float, ...] | None = None
    rope: RopeClass | None = None

    def __post_init__(self) -> None:
        if self.stream not in ("key", "value", "both"):
            raise ValueError(f"stream={self.stream!r} must be 'key', 'value' or 'both'")
        if self.rope not in (None, "pre", "post"):
            raise ValueError(f"rope={self.rope!r} must be 'pre' or 'post'")
        if self.rope is not None and self.stream == "value":
            raise ValueError("rope= has no meaning for values: they carry no rotary embedding")
        for layer in self.layers or ():
            if not (_is_index(layer) or (isinstance(layer, float) and 0 < layer < 1)):
                raise ValueError(
                    f"layer {layer!r} in recipe must be a whole number, or a share of the depth such as 0.25"
                )

    def matches(self, layer: int, stream: StreamName, num_layers: int) -> bool:
        """Whether this rule codes that layer's stream in a model of ``num_layers`` layers."""
        if self.stream not in (stream, "both"):
            return False
        return self.layers is None or layer in {_layer_index(named, num_layers) for named in self.layers}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What a recipe decides for one stream of one layer."""

    codec: CodecConfig
    rope: RopeClass | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What a recipe decides for one layer.

    Attributes:
        sinks: first tokens of a sequence kept exact.
        recent: latest tokens always kept exact, the newest included.
        page: tokens that leave the exact window together: a multiple of both codecs' block sizes.
    """

    key: StreamPlan
    value: StreamPlan
    sinks: int
    recent: int
    page: int

    @property
    def joint(self) -> bool:
        """Whether keys and values are coded together, by one codec."""
        return self.key.codec.joint_streams

    def streams(self) -> tuple[tuple[StreamName, StreamPlan], tuple[StreamName, StreamPlan]]:
        """The two streams by name."""
        return ("key", self.key), ("value", self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Ordered rules and the exact window.

    Attributes:
        rules: the first rule that matches a layer's stream decides; a stream that no rule matches stays bfloat16. A
            rule that comes after others which match all that it names is refused.
        sinks: first tokens of a sequence kept exact.
        recent: latest tokens always kept exact; at least the newest one is. Because a page of tokens is coded at once,
            between ``recent`` and ``recent + page - 1`` tokens are exact. ``recent=1`` is the tight window: a buffer of
            one page that is flushed when it is full.
        boundary: number of layers at each end of the model that ``boundary_codec`` codes, before any rule; at most all.
        boundary_codec: the codec of the boundary layers.
        name: a label for tables; not part of what the recipe means.
    """

    rules: tuple[Rule, ...]
    sinks: int = DEFAULT_SINKS
    recent: int = DEFAULT_RECENT
    boundary: int = 0
    boundary_codec: CodecConfig = dataclasses.field(default_factory=IdentityConfig)
    name: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        for label, value, least in (
            ("sinks", self.sinks, 0),
            ("boundary", self.boundary, 0),
            ("recent", self.recent, 1),
        ):
            if not _is_index(value):
                raise ValueError(f"{label}={value!r} in recipe must be a whole number")
            if value < least:
                raise ValueError(f"{label}={value} must be at least {least}")
        for index, rule in enumerate(self.rules):
            if is_shadowed(rule, self.rules[:index]):
                from kakeya_jax.recipe_text import format_rule

                raise ValueError(
                    f"rule {format_rule(rule)} in recipe never applies: rules before it code all that it names, and "
                    "the first match decides; remove it, or put it before them"
                )

    def plan(self, num_layers: int) -> tuple[LayerPlan, ...]:
        """What each of ``num_layers`` layers does.

        Raises:
            ValueError: a rule names a layer that the model does not have, or the boundary is deeper than the model.
        """
        if self.boundary > num_layers:
            raise ValueError(f"boundary={self.boundary} in recipe must be at most {num_layers}, the model's layers")
        for rule in self.rules:
            for index in rule.layers or ():
                if _is_index(index) and not -num_layers <= index < num_layers:
                    raise ValueError(f"recipe names layer {index}, but the model has layers 0 to {num_layers - 1}")
        return tuple(self._plan_layer(layer, num_layers) for layer in range(num_layers))

    @property
    def needs_calibration(self) -> bool:
        """Whether a codec of this recipe needs tables that are fitted to a model (``CodecConfig.needs_tables``)."""
        codecs = [rule.codec for rule in self.rules] + ([self.boundary_codec] if self.boundary else [])
        return any(codec.needs_tables() for codec in codecs)

    def _plan_layer(self, layer: int, num_layers: int) -> LayerPlan:
        key = self._plan_stream(layer, "key", num_layers)
        value = self._plan_stream(layer, "value", num_layers)
        _check_joint(layer, key, value)
        page = math.lcm(key.codec.block_size, value.codec.block_size)
        return LayerPlan(key=key, value=value, sinks=self.sinks, recent=self.recent, page=page)

    def _plan_stream(self, layer: int, stream: StreamName, num_layers: int) -> StreamPlan:
        codec, rope = IdentityConfig(), None
        if min(layer, num_layers - 1 - layer) < self.boundary:
            codec = self.boundary_codec
        else:
            for rule in self.rules:
                if rule.matches(layer, stream, num_layers):
                    codec, rope = rule.codec, rule.rope
                    break
        return StreamPlan(codec=codec, rope=(rope or codec.rope) if stream == "key" else None)

    def __str__(self) -> str:
        """The name if it has one, else the compact text form."""
        return self.name or self.to_text()

    def to_text(self) -> str:
        """The compact form; ``Recipe.parse`` reads it back."""
        from kakeya_jax.recipe_text import format_recipe

        return format_recipe(self)

    def to_json(self, about: Mapping[str, Any] | None = None) -> str:
        """A JSON object with every setting written out; ``from_json`` gives an equal recipe.

        Args:
            about: where the recipe comes from and what was measured of it, for whoever reads the file: any JSON
                values, kept under ``"about"``. It is no part of the recipe: ``from_json`` ignores it.
        """
        return json.dumps(self.to_dict() | ({} if about is None else {"about": dict(about)}), indent=1)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object as plain Python."""
        rules = [
            {
                "stream": rule.stream,
                "layers": None if rule.layers is None else list(rule.layers),
                "rope": rule.rope,
                "codec": _codec_to_dict(rule.codec),
            }
            for rule in self.rules
        ]
        return {
            "name": self.name,
            "sinks": self.sinks,
            "recent": self.recent,
            "boundary": self.boundary,
            "boundary_codec": _codec_to_dict(self.boundary_codec),
            "rules": rules,
        }

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads what ``to_json`` wrote; an ``"about"`` object is accepted and ignored.

        Raises:
            ValueError: not JSON, an unknown key, or a value outside its range.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"recipe is not valid JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Recipe":
        """Reads what ``to_dict`` gave; an ``"about"`` object (see ``to_json``) is accepted and ignored."""
        _only_keys(data, ("name", "sinks", "recent", "boundary", "boundary_codec", "rules", "about"), "recipe")
        rules = [_rule_from_dict(rule) for rule in _as_list(data.get("rules", []), "rules in recipe")]
        if not isinstance(data.get("name", ""), str):
            raise ValueError(f"name={data['name']!r} in recipe must be text")
        options = {name: data[name] for name in ("name", "sinks", "recent", "boundary") if name in data}
        if "boundary_codec" in data:
            options["boundary_codec"] = _codec_from_dict(data["boundary_codec"])
        return cls(rules=tuple(rules), **options)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """A named recipe, a ``.json`` file, or the compact text form (see the module's docstring).

        Raises:
            ValueError: what is wrong, in one line.
        """
        from kakeya_jax.recipe_text import parse_recipe

        return parse_recipe(text)

    @classmethod
    def named(cls, name: str) -> "Recipe":
        """A recipe of the library by name; ``Recipe.names()`` lists them, and ``klt-N`` is one for any ``N``."""
        from kakeya_jax.named_recipes import named_recipe

        return named_recipe(name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the library's recipes."""
        from kakeya_jax.named_recipes import recipe_names

        return recipe_names()


def is_shadowed(rule: Rule, before: Sequence[Rule]) -> bool:
    """Whether the rules before it match all that ``rule`` names, in models of any depth."""
    streams = ("key", "value") if rule.stream == "both" else (rule.stream,)
    return all(_covers_layers([each for each in before if each.stream in (stream, "both")], rule) for stream in streams)


def _covers_layers(rules: Sequence[Rule], rule: Rule) -> bool:
    if any(each.layers is None for each in rules):
        return True
    named = {layer for each in rules for layer in each.layers or ()}
    return rule.layers is not None and named.issuperset(rule.layers)


def _check_joint(layer: int, key: StreamPlan, value: StreamPlan) -> None:
    for codec in (key.codec, value.codec):
        if codec.joint_streams and key.codec != value.codec:
            raise ValueError(
                f"{codec.name} codes a layer's keys and values together: give layer {layer} the same for both, "
                f"both={codec.name}"
            )
    if key.codec.joint_streams and key.rope != "pre":
        raise ValueError(f"{key.codec.name} stores keys before their rotary embedding: write both, not both@post")


def _is_index(layer: int | float) -> bool:
    return isinstance(layer, int) and not isinstance(layer, bool)


def _layer_index(named: int | float, num_layers: int) -> int:
    return named % num_layers if isinstance(named, int) else int(named * num_layers)


def _codec_to_dict(codec: CodecConfig) -> dict[str, Any]:
    return {"name": codec.name, **dataclasses.asdict(codec)}


def _rule_from_dict(data: Any) -> Rule:
    _only_keys(data, ("stream", "layers", "rope", "codec"), "rule")
    if "codec" not in data:
        raise ValueError("rule has no 'codec'")
    layers = data.get("layers")
    return Rule(
        stream=data.get("stream", "both"),
        layers=None if layers is None else tuple(_as_list(layers, "layers of a rule")),
        rope=data.get("rope"),
        codec=_codec_from_dict(data["codec"]),
    )


def _codec_from_dict(data: Any) -> CodecConfig:
    if not isinstance(data, dict):
        raise ValueError(f'codec in recipe must be a JSON object such as {{"name": "int8"}}, not {data!r}')
    options = dict(data)
    if "name" not in options:
        raise ValueError("codec in recipe has no 'name'")
    if not isinstance(options["name"], str):
        raise ValueError(f"name={options['name']!r} of a codec in recipe must be text, such as 'int8'")
    return codec_config(options.pop("name"), **options)


def _as_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a JSON list, not {value!r}")
    return list(value)


def _only_keys(data: Any, known: tuple[str, ...], what: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(data).__name__}")
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{what} has unknown key {', '.join(unknown)}; known keys: {', '.join(known)}")

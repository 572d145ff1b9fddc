"""Results of an evaluation and their JSON form.

A results file is one object (``SCHEMA`` is its JSON Schema; numbers that are not finite are ``null``)::

    {
      "schema_version": 1,
      "model": "house-qwen2-30m",               name of the folder, hub id, or "demo"
      "text": "eval_book_dev.npy",              what was scored
      "protocol": "stream",                     or "snapshot"
      "context": 4096, "warmup": 512, "passages": 6, "continuation": null,
      "tokens_scored": 21498,                   for each recipe
      "reference_ppl": 27.19,                   perplexity of the dense model on the same tokens
      "gates": "gates 'default': ...",          the thresholds behind every verdict
      "dtype": "float32",                       of weights and activations
      "cache_dtype": "float32",                 of exact tokens; their bytes are counted as bfloat16
      "note": "", "warnings": [],
      "command": "kakeya eval ...",             what repeats it; empty if it was not made by a command
      "text_sha256": "5f2c...",                 of the passages scored, token for token; empty in older files
      "environment": {"python", "platform", "packages", "backend", "devices", ...},
      "rows": [{
        "recipe": "turboquant-3",               as asked for
        "recipe_text": "both=turboquant(bits=3)",  spelled out; `Recipe.parse` reads it
        "bits_per_value": {"payload": 3.0, "all_in": 3.125},   coded values only, without the exact window
        "bytes_per_token": 3400.1,              everything held at this context, window included
        "compression_ratio": 4.8,               dense bfloat16 bytes / bytes held
        "table_bytes": 0,                       calibrated tables, once for a model; in none of the numbers above
        "exact_window": {"sinks": 4, "recent_min": 128, "recent_max": 255},
        "ppl": 27.3, "delta_ppl_percent": 0.5, "delta_ppl_ci95": [0.37, 0.6],
        "kl_mean": 0.0043, "kl_ci95": [0.004, 0.0046], "kl_p99": 0.03,   KL(reference || candidate), nats
        "top1_agreement": 0.9577,               fraction of tokens, 0 to 1
        "verdict": "ACCEPT",
        "encode_seconds": 0.2,                  encoding one context's K and V, compiled; null: not timed
        "run_seconds": 9.1, "compile_seconds": 12.0,
        "per_passage": {"delta_nll": [...], "kl": [...]},
        "environment": {...}                    where it was measured, if elsewhere than the file's other rows
      }]
    }
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

SCHEMA_VERSION = 1

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe's bytes and quality; the fields are those of the JSON form (see the module's docstring)."""

    recipe: str
    recipe_text: str
    payload_bits: float
    all_in_bits: float
    bytes_per_token: float
    compression_ratio: float
    sinks: int
    recent_min: int
    recent_max: int
    ppl: float
    delta_ppl_percent: float
    delta_ppl_ci95: Pair | None
    kl_mean: float
    kl_ci95: Pair | None
    kl_p99: float
    top1_agreement: float
    verdict: str
    encode_seconds: float | None
    run_seconds: float
    compile_seconds: float
    passage_delta_nll: tuple[float, ...]
    passage_kl: tuple[float, ...]
    table_bytes: int = 0
    environment: dict[str, Any] | None = None

    @property
    def window(self) -> tuple[int, int, int]:
        """Sinks, and least and most recent tokens kept exact: rows compare only where these are equal."""
        return self.sinks, self.recent_min, self.recent_max

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON form."""
        data = dataclasses.asdict(self)
        data["bits_per_value"] = {"payload": data.pop("payload_bits"), "all_in": data.pop("all_in_bits")}
        data["exact_window"] = {name: data.pop(name) for name in ("sinks", "recent_min", "recent_max")}
        data["per_passage"] = {"delta_nll": data.pop("passage_delta_nll"), "kl": data.pop("passage_kl")}
        if self.environment is None:
            del data["environment"]
        return data


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What `evaluate` measured; the fields are those of the JSON form (see the module's docstring)."""

    protocol: str
    context: int
    warmup: int
    passages: int
    continuation: int | None
    tokens_scored: int
    reference_ppl: float
    gates: str
    dtype: str
    cache_dtype: str
    rows: tuple[Row, ...]
    environment: dict[str, Any]
    warnings: tuple[str, ...] = ()
    model: str = ""
    text: str = ""
    note: str = ""
    command: str = ""
    text_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "rows"]
        data: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        data |= {name: getattr(self, name) for name in names}
        data["rows"] = [row.to_dict() for row in self.rows]
        return _finite(data)

    def to_json(self) -> str:
        """The JSON text; valid JSON whatever was measured."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the JSON form to a file, and the folders it needs."""
        path = pathlib.Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json() + "\n")


def window_warning(rows: tuple[Row, ...]) -> str | None:
    """A sentence if rows keep different tokens exact, else ``None``.

    The window is worth a factor of 8 to 10 in KL, so such rows say nothing about their codecs.
    """
    windows = sorted({row.window for row in rows if row.all_in_bits < 16})
    if len(windows) < 2:
        return None
    listed = ", ".join(f"{sinks} sinks + {least}-{most} recent" for sinks, least, most in windows)
    return f"rows keep different tokens exact ({listed}): compare codecs only within one window"


def _finite(value: Any) -> Any:
    """Non-finite floats as ``None``, tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_NUMBER = {"type": ["number", "null"]}
_INTEGER = {"type": "integer", "minimum": 0}
_INTERVAL = {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


_LATER = ("command", "text_sha256")
"""What files of this version may lack, because older ones do."""


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = _LATER) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "model": {"type": "string"},
            "text": {"type": "string"},
            "protocol": {"enum": ["stream", "snapshot"]},
            "context": _INTEGER,
            "warmup": _INTEGER,
            "passages": _INTEGER,
            "continuation": {"type": ["integer", "null"]},
            "tokens_scored": _INTEGER,
            "reference_ppl": _NUMBER,
            "gates": {"type": "string"},
            "dtype": {"type": "string"},
            "cache_dtype": {"type": "string"},
            "note": {"type": "string"},
            "command": {"type": "string"},
            "text_sha256": {"type": "string"},
            "warnings": {"type": "array", "items": {"type": "string"}},
            "environment": {"type": "object"},
            "rows": {
                "type": "array",
                "items": _object(
                    {
                        "recipe": {"type": "string"},
                        "recipe_text": {"type": "string"},
                        "bits_per_value": _object({"payload": _NUMBER, "all_in": _NUMBER}),
                        "bytes_per_token": _NUMBER,
                        "compression_ratio": _NUMBER,
                        "table_bytes": _INTEGER,
                        "exact_window": _object({"sinks": _INTEGER, "recent_min": _INTEGER, "recent_max": _INTEGER}),
                        "ppl": _NUMBER,
                        "delta_ppl_percent": _NUMBER,
                        "delta_ppl_ci95": _INTERVAL,
                        "kl_mean": _NUMBER,
                        "kl_ci95": _INTERVAL,
                        "kl_p99": _NUMBER,
                        "top1_agreement": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                        "verdict": {"type": "string"},
                        "encode_seconds": _NUMBER,
                        "run_seconds": _NUMBER,
                        "compile_seconds": _NUMBER,
                        "per_passage": _object({"delta_nll": {"type": "array"}, "kl": {"type": "array"}}),
                        "environment": {"type": "object"},
                    },
                    optional=("environment",),
                ),
            },
        }
    ),
}

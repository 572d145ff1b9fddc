"""Results of an ablation and their JSON form.

A file is one object (``SCHEMA`` is its JSON Schema; numbers that are not finite are ``null``)::

    {
      "schema_version": 1,
      "ablation": "whitening", "question": "...", "claims": ["KakeyaTurbo: ..."],
      "model": "demo", "text": "text.txt",      name of the folder, hub id, or "demo"; what was scored
      "context": 2048, "passages": 4,           tokens of a passage, and how many
      "tokens_scored": 6140,                    the fewest of any row
      "baseline": "3 bits, plain",              label of the row that others are compared with, or null
      "gates": null,                            or {"file": {...}, "sha256", "text"}: fixed before the run
      "calibration": null,                      or {"tokens", "corpus_hash", "fitted_tokens"}: never of the scored text
      "command": "kakeya ablate whitening demo --json ...",
      "environment": {"date", "python", "platform", "packages", "backend", "devices", ...},
      "findings": ["..."],                      sentences made from the rows
      "warnings": [],
      "rows": [{
        "label": "3 bits, whitened", "tokens_scored": 6140, "seconds": 21.3,
        ...,                                    of recipes: a row of `kakeya eval`, and "coded_bits";
                                                else what the ablation's own columns show
        "paired": {"kl_ratio": 0.8, "kl_ratio_ci95": [0.7, 0.9],        against the baseline, over the same passages:
                   "delta_ppl_percent": 0.1, "delta_ppl_ci95": [0, 0.2]}    recipes of an ablation with a baseline
      }]
    }
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from kakeya_jax.eval.ablations.ablation import Row
from kakeya_jax.whole_file import whole_file

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationResult:
    """What was measured; the fields are those of the JSON form (see the module's docstring)."""

    ablation: str
    question: str
    claims: tuple[str, ...]
    model: str
    text: str
    context: int
    passages: int
    tokens_scored: int
    baseline: str | None
    gates: dict[str, Any] | None
    calibration: dict[str, Any] | None
    command: str
    environment: dict[str, Any]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"schema_version": SCHEMA_VERSION} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
        }

    def to_json(self) -> str:
        """The JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON form to a file, whole or not at all, and the folders it needs."""
        path = pathlib.Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(self.to_json() + "\n")


def load_ablation_result(path: str | os.PathLike[str]) -> AblationResult:
    """Reads a results file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a results file of this schema.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"results file {path} does not exist")
    try:
        return result_from_dict(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an ablation's results file of this version: {error}") from None


def result_from_dict(data: dict[str, Any]) -> AblationResult:
    """The result that ``to_dict`` gave.

    Raises:
        ValueError, TypeError, KeyError: it is of another schema.
    """
    data = dict(data)
    if data.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version must be {SCHEMA_VERSION}")
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return AblationResult(**fields)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_NUMBER = {"type": ["number", "null"]}
_INTERVAL = {"type": ["array", "null"], "items": _NUMBER, "minItems": 2, "maxItems": 2}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_GATES = _object({"file": {"type": "object"}, "sha256": {"type": "string"}, "text": {"type": "string"}})
_PAIRED = _object(
    {
        "kl_ratio": _NUMBER,
        "kl_ratio_ci95": _INTERVAL,
        "delta_ppl_percent": _NUMBER,
        "delta_ppl_ci95": _INTERVAL,
    }
)

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "ablation": {"type": "string"},
            "question": {"type": "string"},
            "claims": _TEXTS,
            "model": {"type": "string"},
            "text": {"type": "string"},
            "context": {"type": "integer", "minimum": 2},
            "passages": {"type": "integer", "minimum": 1},
            "tokens_scored": {"type": "integer", "minimum": 1},
            "baseline": {"type": ["string", "null"]},
            "gates": {"anyOf": [{"type": "null"}, _GATES]},
            "calibration": {"type": ["object", "null"]},
            "command": {"type": "string", "pattern": "^kakeya ablate "},
            "environment": {"type": "object", "required": ["date", "packages", "backend", "devices"]},
            "findings": _TEXTS,
            "warnings": _TEXTS,
            "rows": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["label", "tokens_scored", "seconds"],
                    "properties": {
                        "label": {"type": "string"},
                        "tokens_scored": {"type": "integer", "minimum": 1},
                        "seconds": {"type": "number", "minimum": 0},
                        "paired": _PAIRED,
                    },
                },
            },
        }
    ),
    "additionalProperties": False,
}

"""Grids of measurements: a YAML file read into one request for each combination, and every mistake in it found.

::

    models:                            # each with every text, recipe and set of options
      - demo
      - model: $HOUSE/house-qwen2-30m  # a folder or hub id; variables of the environment are filled in
        calibration: klt.safetensors
        texts: [$DATA/eval.npy]        # instead of the grid's
    texts: [bundled]                   # .npy and .npy.xz are token ids, other files UTF-8 text; bundled: demo's own
    recipes:
      - int8
      - recipe: "both=kakeya(bits={bits},block_size={block})"
        bits: [2, 3, 4]
        block: [128, 256]
    options:                           # of `kakeya eval`, each a value or a list; or a list of such sets
      context: [1024, 4096]
      passages: 4
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from kakeya_jax.eval.run_eval import Request, command_of
from kakeya_jax.models.locate import DEMO

BUNDLED = "bundled"
"""The text of the bundled model."""

_TOP = ("models", "texts", "recipes", "options")
_OPTIONS: dict[str, tuple[type, ...]] = {
    "protocol": (str,),
    "context": (int,),
    "passages": (int,),
    "warmup": (int,),
    "continuation": (int,),
    "chunk": (int,),
    "gates": (str,),
    "dtype": (str,),
    "cache_dtype": (str,),
    "stress": (int, float),
    "encode_time": (bool,),
}
"""Options of ``kakeya eval`` that a grid may set, and what they are."""

_PLACE = re.compile(r"\{(\w+)\}")


class GridError(ValueError):
    """A grid that cannot be run; ``problems`` has a line for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(dict.fromkeys(" ".join(problem.split()) for problem in problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridCell:
    """One combination.

    Attributes:
        written: the request as the grid has it, variables not filled in.
        request: the same with variables filled in: what runs.
    """

    written: Request
    request: Request

    @property
    def command(self) -> str:
        """The ``kakeya eval`` command that repeats it."""
        return command_of(self.written)


def load_grid(path: str | os.PathLike[str], *, max_cells: int = 1000) -> list[GridCell]:
    """The cells of a grid in order: models outermost, then texts, options, and recipes innermost.

    Raises:
        FileNotFoundError: there is no such file.
        GridError: it is no grid, names something unknown, or has no cell, too many, or one twice.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"grid {path} does not exist")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError([f"{path} is not readable YAML: {error}"]) from None
    if not isinstance(data, dict):
        raise GridError([f"{path} must be a mapping with {', '.join(_TOP)}"])
    problems = [f"unknown key {key!r} in {path.name}; known keys: {', '.join(_TOP)}" for key in data if key not in _TOP]
    models = [_model(each, problems) for each in _as_list(data, "models", problems)]
    recipes = [text for each in _as_list(data, "recipes", problems) for text in _recipes(each, problems)]
    options = list(_option_sets(data.get("options", {}), problems))
    texts = _texts(data.get("texts"), "texts", problems)
    plan = [(model, text) for model in models for text in (model.pop("texts", None) or texts or [None])]
    count = len(plan) * len(options) * len(recipes)
    if count > max_cells:
        problems.append(f"{count} cells are more than {max_cells}; use a smaller grid, or --max-cells {count}")
    if problems:
        raise GridError(problems)
    cells = [
        _cell({**model, **_text_option(text, model["model"]), **chosen, "recipes": (recipe,)}, problems)
        for (model, text), chosen, recipe in itertools.product(plan, options, recipes)
    ]
    found = [cell for cell in cells if cell is not None]
    for cell, times in _counts([each.command for each in found]).items():
        if times > 1:
            problems.append(f"{times} cells are the same: {cell}")
    if problems:
        raise GridError(problems)
    return found


def _cell(written: dict[str, Any], problems: list[str]) -> GridCell | None:
    filled: dict[str, Any] = {
        name: os.path.expandvars(value) if isinstance(value, str) and name == "model" else value
        for name, value in written.items()
    }
    for name in ("text", "tokens", "calibration"):
        if filled.get(name) is not None:
            filled[name] = pathlib.Path(os.path.expandvars(filled[name])).expanduser()
            written = {**written, name: pathlib.Path(written[name])}
    for name in ("model", "text", "tokens", "calibration"):
        missing = re.findall(r"\$\{?(\w+)", str(filled.get(name) or ""))
        problems += [f"{name} {written[name]}: the variable {each} is not set" for each in missing]
    try:
        return GridCell(written=Request(**written), request=Request(**filled))
    except ValueError as error:
        problems.append(f"{written['model']}, {written['recipes'][0]}: {error}")
        return None


def _model(entry: Any, problems: list[str]) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"model": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        problems.append(f"model {entry!r} must be a folder, a hub id or {DEMO}, or a mapping with model: one of them")
        return {"model": "?"}
    model = dict(entry)
    for key in set(model) - {"model", "calibration", "texts"}:
        problems.append(f"unknown key {key!r} of model {model['model']}; known keys: model, calibration, texts")
        model.pop(key)
    if not isinstance(model.get("calibration", ""), str):
        problems.append(f"calibration of model {model['model']} must be a file name")
    model["texts"] = _texts(model.get("texts"), f"texts of model {model['model']}", problems)
    return model


def _texts(entry: Any, what: str, problems: list[str]) -> list[str]:
    found = [entry] if isinstance(entry, str) else entry or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        problems.append(f"{what} must be a list of files, or {BUNDLED}")
        return []
    return found


def _text_option(text: str | None, model: str) -> dict[str, str]:
    if text is None or (text == BUNDLED and model == DEMO):
        return {}
    return {"tokens" if text.endswith((".npy", ".npy.xz")) else "text": text}


def _recipes(entry: Any, problems: list[str]) -> Iterator[str]:
    """The recipe texts of an entry: itself, or a template with each combination of its lists filled in."""
    if isinstance(entry, str):
        entry = {"recipe": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe"), str):
        problems.append(f"recipe {entry!r} must be text, or a mapping with recipe: text and lists for its places")
        return
    text: str = entry["recipe"]
    places = list(dict.fromkeys(_PLACE.findall(text)))
    lists = {name: values for name, values in entry.items() if name != "recipe"}
    if set(places) != set(lists):
        empty, unused = sorted(set(places) - set(lists)), sorted(set(lists) - set(places))
        problems += [f"recipe {text!r} has no list for {{{name}}}" for name in empty]
        problems += [f"recipe {text!r} has no place {{{name}}} for the list {name}" for name in unused]
        return
    for chosen in itertools.product(*(_values(lists[name]) for name in places)):
        named = dict(zip(places, map(_spell, chosen), strict=True))
        yield _PLACE.sub(lambda match, named=named: named[match[1]], text)


def _option_sets(entry: Any, problems: list[str]) -> Iterator[dict[str, Any]]:
    sets = entry if isinstance(entry, list) else [entry]
    for each in sets:
        if not isinstance(each, dict):
            problems.append(f"options {each!r} must be a mapping such as context: [1024, 4096]")
            continue
        for name, values in each.items():
            kinds = _OPTIONS.get(name)
            if kinds is None:
                problems.append(f"unknown option {name!r}; a grid may set {', '.join(_OPTIONS)}")
                continue
            for value in _values(values):
                if type(value) not in kinds and value is not None:
                    problems.append(
                        f"option {name}: {value!r} must be of type {' or '.join(k.__name__ for k in kinds)}"
                    )
        for chosen in itertools.product(*map(_values, each.values())):
            yield {"encode_time": False, **{k: v for k, v in zip(each, chosen, strict=True) if v is not None}}


def _as_list(data: dict[str, Any], name: str, problems: list[str]) -> list[Any]:
    found = data.get(name)
    found = [found] if isinstance(found, str | dict) else found
    if not isinstance(found, list) or not found:
        problems.append(f"the grid has no {name}: write {name}: and a list")
        return []
    return found


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _counts(items: list[str]) -> dict[str, int]:
    return {item: items.count(item) for item in dict.fromkeys(items)}

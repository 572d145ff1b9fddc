"""Weights in the Hugging Face layout: read into parameters, and written back byte for byte."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.models.locate import ModelError, find_folder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Stored dtypes that are read, and what JAX calls them."""


class Tensor(NamedTuple):
    """One parameter: its path in the tree, its shape in the file, whether the file holds the transpose."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool = False


def load(
    model: str | Path,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    offline: bool = False,
    revision: str | None = None,
    precision: str | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """A decoder and its parameters.

    Args:
        model: a Hugging Face model folder, a hub id, or ``"demo"`` for the bundled model.
        dtype: dtype of activations, ``"float32"`` or ``"bfloat16"``.
        param_dtype: dtype the parameters are held in; as ``dtype`` if not given.
        offline: never ask the hub; use what its cache holds.
        revision: branch, tag or commit of a hub id.
        precision: precision of matrix products, see ``Decoder``.

    Raises:
        ModelError: no such model, an unsupported architecture, or tensors that are missing, unexpected or of
            another shape than the config says; the message names them.
    """
    held_dtype = jnp.dtype(dtype if param_dtype is None else param_dtype)
    folder = find_folder(model, offline=offline, revision=revision)
    config = ModelConfig.from_folder(folder)
    params = load_params(folder, config, held_dtype)
    return Decoder(config, dtype=jnp.dtype(dtype), param_dtype=held_dtype, precision=precision), params


def load_params(folder: str | Path, config: ModelConfig, param_dtype: DTypeLike) -> dict[str, Any]:
    """The parameters in a folder, one tensor at a time, so that the host never holds a second copy of the
    model.

    Raises:
        ModelError: see ``load``.
    """
    folder = Path(folder)
    expected = tensors_of(config)
    source = _locate_tensors(folder)
    tied_head = _tied_head(config, source)
    _check_tensors(folder, expected, source, ignored=tied_head)
    flat = {}
    for name, tensor in expected.items():
        array = source[name].read()
        flat[tensor.path] = jnp.asarray(array.T if tensor.transposed else array, dtype=param_dtype)
    for name in tied_head:
        if not np.array_equal(source[name].read(), source["model.embed_tokens.weight"].read()):
            raise ModelError(f"{folder}: config.json ties the embeddings, but {name} is not model.embed_tokens.weight")
    return traverse_util.unflatten_dict(flat)


def save(folder: str | Path, config: ModelConfig, params: Mapping[str, Any], *, shard_bytes: int | None = None) -> None:
    """Writes ``config.json`` and the weights, in the dtypes the parameters have, as transformers would.

    Args:
        folder: made if it does not exist; files of the same name are replaced.
        config: the architecture.
        params: the parameter tree of ``Decoder(config)``.
        shard_bytes: start a new file when the present one would exceed this many bytes of tensors; ``None``
            for one file.

    Raises:
        ModelError: the parameters are not those of ``config``.
    """
    folder = Path(folder)
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(params)))
    expected = tensors_of(config)
    _check_params(expected, flat)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / INDEX_FILE, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    dtypes = {jnp.dtype(flat[tensor.path].dtype).name for tensor in expected.values()}
    raw = config.to_huggingface() | {"torch_dtype": dtypes.pop() if len(dtypes) == 1 else "float32"}
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    shards = _shards(expected, flat, shard_bytes)
    files = [SINGLE_FILE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        arrays = {name: _stored(flat[expected[name].path], expected[name]) for name in names}
        save_file(arrays, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(flat[tensor.path].nbytes for tensor in expected.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def tensors_of(config: ModelConfig) -> dict[str, Tensor]:
    """Every tensor of a model by its Hugging Face name, in the order of the layers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": Tensor(("embed_tokens", "embedding"), (config.vocab_size, hidden))
    }

    def add_projection(prefix: str, path: tuple[str, ...], outputs: int, inputs: int, bias: bool) -> None:
        tensors[f"{prefix}.weight"] = Tensor((*path, "kernel"), (outputs, inputs), transposed=True)
        if bias:
            tensors[f"{prefix}.bias"] = Tensor((*path, "bias"), (outputs,))

    def add_norm(prefix: str, path: tuple[str, ...], width: int) -> None:
        tensors[f"{prefix}.weight"] = Tensor((*path, "scale"), (width,))

    for index in range(config.num_layers):
        prefix, layer = f"model.layers.{index}", f"layers_{index}"
        add_norm(f"{prefix}.input_layernorm", (layer, "attention_norm"), hidden)
        sizes = {
            "q_proj": (query, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, query),
        }
        for name, (outputs, inputs) in sizes.items():
            bias = config.output_bias if name == "o_proj" else config.qkv_bias
            add_projection(f"{prefix}.self_attn.{name}", (layer, "attention", name), outputs, inputs, bias)
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                add_norm(f"{prefix}.self_attn.{name}", (layer, "attention", name), config.head_dim)
        add_norm(f"{prefix}.post_attention_layernorm", (layer, "mlp_norm"), hidden)
        for name, (outputs, inputs) in {
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }.items():
            add_projection(f"{prefix}.mlp.{name}", (layer, "mlp", name), outputs, inputs, config.mlp_bias)
    add_norm("model.norm", ("final_norm",), hidden)
    if not config.tie_word_embeddings:
        add_projection("lm_head", ("lm_head",), config.vocab_size, hidden, bias=False)
    return tensors


class _Stored(NamedTuple):
    """A tensor in a file, not yet read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        with safe_open(self.file, framework="numpy") as opened:
            return opened.get_tensor(self.name)


def _locate_tensors(folder: Path) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    view = opened.get_slice(name)
                    if name in found:
                        raise ModelError(f"{folder}: {name} is in both {found[name].file.name} and {file.name}")
                    found[name] = _Stored(file, name, tuple(view.get_shape()), view.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not a readable safetensors file: {error}") from None
    return found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if not index.is_file():
        raise ModelError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors weights are read")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not a safetensors index: {error!r}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {_listing(missing)}, which {INDEX_FILE} names")
    return [folder / name for name in names]


def _tied_head(config: ModelConfig, source: Mapping[str, _Stored]) -> list[str]:
    """Some exporters store the tied head a second time; it is checked for equality and otherwise ignored."""
    return [name for name in ("lm_head.weight",) if config.tie_word_embeddings and name in source]


def _check_tensors(
    folder: Path, expected: Mapping[str, Tensor], source: Mapping[str, _Stored], ignored: list[str]
) -> None:
    missing = [name for name in expected if name not in source]
    unexpected = [
        name
        for name in source
        if name not in expected and name not in ignored and not name.endswith("rotary_emb.inv_freq")
    ]
    wrong = [
        f"{name} is {list(source[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in source and source[name].shape != tensor.shape
    ]
    unreadable = [
        f"{name} is {source[name].dtype}" for name in expected if name in source and source[name].dtype not in _DTYPES
    ]
    complaints = [
        f"{what}: {_listing(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
            (f"of a dtype other than {', '.join(_DTYPES)}", unreadable),
        )
        if names
    ]
    if complaints:
        raise ModelError(f"{folder}: the weights do not match config.json; {'; '.join(complaints)}")


def _check_params(expected: Mapping[str, Tensor], flat: Mapping[tuple[str, ...], Any]) -> None:
    paths = {tensor.path: tensor.shape[::-1] if tensor.transposed else tensor.shape for tensor in expected.values()}
    missing = ["/".join(path) for path in paths if path not in flat]
    unexpected = ["/".join(path) for path in flat if path not in paths]
    wrong = [
        f"{'/'.join(path)} is {list(flat[path].shape)} instead of {list(shape)}"
        for path, shape in paths.items()
        if path in flat and tuple(flat[path].shape) != shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
    complaints = [f"{what}: {_listing(names)}" for what, names in found if names]
    if complaints:
        raise ModelError(f"the parameters are not those of the config; {'; '.join(complaints)}")


def _listing(names: list[str], shown: int = 6) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _shards(
    expected: Mapping[str, Tensor], flat: Mapping[tuple[str, ...], Any], shard_bytes: int | None
) -> list[list[str]]:
    limit = math.inf if shard_bytes is None else shard_bytes
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in expected.items():
        nbytes = flat[tensor.path].nbytes
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _stored(param: Any, tensor: Tensor) -> np.ndarray:
    array = np.asarray(param)
    # safetensors writes the buffer as it lies, so a transpose must be laid out first.
    return np.ascontiguousarray(array.T if tensor.transposed else array)

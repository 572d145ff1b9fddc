"""Evaluation text: token files, text files, and the passages cut from them."""

import lzma
import pathlib
from typing import Any

import numpy as np

from kakeya_jax.typing import Int


def load_tokens(path: str | pathlib.Path) -> Int[np.ndarray, " n"]:
    """The token ids of a ``.npy`` or ``.npy.xz`` file, as int32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a one-dimensional array of integers.
    """
    path = _existing(path, "token file")
    try:
        if path.suffix == ".xz":
            with lzma.open(path) as file:
                tokens = np.lib.format.read_array(file, allow_pickle=False)
        else:
            tokens = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"token file {path} is not a readable .npy or .npy.xz array: {_reason(path, error)}") from None
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"token file {path} must hold a one-dimensional array of integer token ids")
    return tokens.astype(np.int32)


def encode_text(path: str | pathlib.Path, tokenizer: Any) -> Int[np.ndarray, " n"]:
    """The token ids of a UTF-8 text file, without special tokens.

    Args:
        path: the file.
        tokenizer: has ``encode(text) -> list of int``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8.
    """
    path = _existing(path, "text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text file {path} is not UTF-8: {error}") from None
    return np.asarray(tokenizer.encode(text), np.int32)


def check_vocabulary(tokens: Int[np.ndarray, " n"], vocab_size: int) -> None:
    """Raises a ``ValueError`` if a token id does not exist in the model's vocabulary."""
    low, high = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token ids run from {low} to {high}, but the model's vocabulary has {vocab_size}; "
            "these tokens belong to another tokenizer"
        )


def passage_count(num_tokens: int, context: int, scored_per_passage: int, least_scored: int) -> int:
    """Passages needed to score ``least_scored`` tokens, or as many as the text holds if it is shorter."""
    return max(1, min(-(-least_scored // scored_per_passage), num_tokens // context))


def cut_passages(tokens: Int[np.ndarray, " n"], context: int, count: int) -> Int[np.ndarray, "passages context"]:
    """Evenly spaced passages that do not overlap; the first starts the text, the last ends it.

    Raises:
        ValueError: the text is too short, or a size is below 1.
    """
    if context < 1:
        raise ValueError(f"context={context} must be at least 1 token")
    if len(tokens) < context:
        raise ValueError(
            f"text has {len(tokens)} tokens, fewer than context={context}; use a longer text or a smaller context"
        )
    fit = len(tokens) // context
    if not 1 <= count <= fit:
        raise ValueError(
            f"passages={count} must be between 1 and {fit}, as many of context={context} as {len(tokens)} tokens hold; "
            "use fewer, a longer text or a smaller context"
        )
    starts = np.linspace(0, len(tokens) - context, count).round().astype(int) if count > 1 else np.zeros(1, int)
    return np.stack([tokens[start : start + context] for start in starts])


def _reason(path: pathlib.Path, error: Exception) -> str:
    """Why an array could not be read, without numpy's advice to unpickle a file that is none."""
    if path.suffix != ".xz":
        with open(path, "rb") as file:
            if not file.read(6).startswith(b"\x93NUMPY"):
                return "it does not begin as numpy.save begins; of plain text make --text FILE"
    return "it holds Python objects, not numbers" if "pickle" in str(error) else str(error)


def _existing(path: str | pathlib.Path, what: str) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path} does not exist")
    return path

"""Text to token ids and back, from a model's ``tokenizer.json``."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers

from kakeya_jax.models.locate import ModelError, find_folder


class Tokenizer:
    """A fast tokenizer without torch or transformers.

    Attributes:
        path: the ``tokenizer.json`` it came from.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads a ``tokenizer.json``.

        Raises:
            ModelError: no such file, or not a tokenizer.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path.parent} has no {self.path.name}; texts need it, token files do not")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{self.path} is not a tokenizer: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> np.ndarray:
        """Int32 ids ``[n]`` of ``text``; if asked, with the special tokens its template adds."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids, dtype=np.int32)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a token as spelled in the vocabulary, or ``None``."""
        return self._tokenizer.token_to_id(token)


def load_tokenizer(model: str | Path, *, offline: bool = False, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model folder, a hub id, or ``"demo"``.

    Raises:
        ModelError: no such model, or no tokenizer with it.
    """
    return Tokenizer(find_folder(model, offline=offline, revision=revision) / "tokenizer.json")

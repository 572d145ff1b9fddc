r"""Train a byte-level BPE on token shards, and rewrite the shards in its tokens.

    python -m kakeya_jax.models.train_tokenizer --tokens train_tokens.npy.xz \
        --tokenizer house/tokenizer.json --vocab-size 8192 --out DIR

decodes the shards with the tokenizer they were written in, trains a smaller one on the text, and writes
``DIR/tokenizer.json`` and ``DIR/tokens.npy``. ``--use FILE`` takes a trained tokenizer
instead.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from kakeya_jax.models.pretrain_data import load_tokens

SEPARATOR = "<|endoftext|>"
"""The token between documents; always id 0."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BATCH = 1024


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with ``vocab_size`` tokens: the separator (id 0), all 256 bytes, then merges.

    Any text survives ``decode(encode(text))`` unchanged: there is no normalisation and no unknown token.

    Raises:
        ValueError: ``vocab_size`` has no room for the 256 bytes and the separator.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size} must be at least 257: 256 bytes and the separator")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def decode_documents(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """The texts of the documents that id 0 separates in ``tokens``, in order; empty ones are left out."""
    documents = [part[part != 0] for part in np.split(tokens, np.flatnonzero(tokens == 0))]
    documents = [document for document in documents if len(document)]
    for start in range(0, len(documents), _BATCH):
        batch = [document.tolist() for document in documents[start : start + _BATCH]]
        yield from tokenizer.decode_batch(batch, skip_special_tokens=False)


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """The uint16 tokens of ``texts``, each followed by id 0.

    Raises:
        ValueError: ids of the tokenizer do not fit, its id 0 is not the separator, or a text does not survive
            the round trip.
    """
    if tokenizer.get_vocab_size() > 2**16 or tokenizer.id_to_token(0) != SEPARATOR:
        raise ValueError(f"the tokenizer needs at most {2**16} tokens, and {SEPARATOR!r} as id 0")
    pieces: list[np.ndarray] = []
    for batch in _batches(texts):
        ids = [encoding.ids for encoding in tokenizer.encode_batch(batch, add_special_tokens=False)]
        for text, again in zip(batch, tokenizer.decode_batch(ids, skip_special_tokens=False), strict=True):
            if text != again:
                raise ValueError(f"decode(encode(text)) differs from the text that starts {text[:60]!r}")
        pieces.extend(np.asarray([*row, 0], np.uint16) for row in ids)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint16)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes ``tokenizer.json`` without the indentation, which is more than half of the usual file."""
    content = json.loads(tokenizer.to_str())
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def main(arguments: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(prog="python -m kakeya_jax.models.train_tokenizer", description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=Path, required=True, help="shards, .npy or .npy.xz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the tokenizer.json the shards are in")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--use", type=Path, help="a trained tokenizer.json; nothing is trained then")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json and tokens.npy")
    options = parser.parse_args(arguments)

    old = Tokenizer.from_file(str(options.tokenizer))
    texts = list(decode_documents(load_tokens(options.tokens), old))
    new = Tokenizer.from_file(str(options.use)) if options.use else train_bpe(texts, options.vocab_size)
    tokens = encode_documents(texts, new)
    options.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(new, options.out / "tokenizer.json")
    np.save(options.out / "tokens.npy", tokens)
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} documents, {size} bytes, {len(tokens)} tokens of {new.get_vocab_size()}")


if __name__ == "__main__":
    main()

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers

from kakeya_jax.models.train_tokenizer import (
    SEPARATOR,
    decode_documents,
    encode_documents,
    main,
    save_tokenizer,
    train_bpe,
)

TEXTS = [
    "the cat sat on the mat.\n\nthe end of the cat\n" * 3,
    "na\u00efve caf\u00e9 12345 \u4f60\u597d\t\r\n",
    "it's the mat",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 280)


def test_the_separator_is_id_zero_and_common_words_are_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.id_to_token(0) == SEPARATOR
    assert tokenizer.get_vocab_size() == 280
    assert len(tokenizer.encode(" the").ids) == 1


@hypothesis.given(st.text(max_size=60))
def test_any_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_documents_survive_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    tokens = encode_documents(TEXTS, tokenizer)
    assert tokens.dtype == np.uint16
    assert np.count_nonzero(tokens == 0) == len(TEXTS)
    assert tokens[-1] == 0
    assert list(decode_documents(tokens, tokenizer)) == TEXTS
    assert list(decode_documents(tokens[:-1], tokenizer)) == TEXTS  # a last document without a separator
    assert len(encode_documents([], tokenizer)) == 0


def test_a_smaller_vocabulary_is_a_prefix_of_a_larger_one(tokenizer: Tokenizer) -> None:
    small = train_bpe(TEXTS, 270).get_vocab()
    assert small == {token: index for token, index in tokenizer.get_vocab().items() if index < 270}


def test_a_tokenizer_that_changes_texts_is_refused() -> None:
    lossy = train_bpe(["abc"], 257)
    lossy.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="differs from the text that starts 'ABC'"):
        encode_documents(["ABC"], lossy)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=256 must be at least 257"):
        train_bpe(TEXTS, 256)


def test_the_command_line_rewrites_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "old.json")
    np.save(tmp_path / "old.npy", encode_documents(TEXTS, tokenizer))
    shards = ["--tokens", str(tmp_path / "old.npy"), "--tokenizer", str(tmp_path / "old.json")]
    main([*shards, "--vocab-size", "262", "--out", str(tmp_path / "new")])
    new = Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    assert new.get_vocab_size() == 262
    tokens = np.load(tmp_path / "new" / "tokens.npy")
    assert list(decode_documents(tokens, new)) == TEXTS
    main([*shards, "--use", str(tmp_path / "new" / "tokenizer.json"), "--out", str(tmp_path / "again")])
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "tokens.npy"), tokens)

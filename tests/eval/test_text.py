import lzma
from pathlib import Path

import numpy as np
import pytest

from kakeya_jax.eval import text


@pytest.mark.parametrize("suffix", [".npy", ".npy.xz"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_token_files_are_read(tmp_path: Path, suffix: str, dtype: type):
    tokens = np.array([3, 0, 14999], dtype)
    path = tmp_path / f"tokens{suffix}"
    with (lzma.open if suffix.endswith("xz") else open)(path, "wb") as file:
        np.save(file, tokens)
    loaded = text.load_tokens(path)
    assert loaded.dtype == np.int32
    np.testing.assert_array_equal(loaded, tokens)


def test_broken_token_files_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        text.load_tokens(tmp_path / "none.npy")
    for name in ("text.npy", "text.npy.xz"):
        (tmp_path / name).write_text("not an array")
        with pytest.raises(ValueError, match=r"not a readable \.npy"):
            text.load_tokens(tmp_path / name)
    for name, reason in (("text.npy", "does not begin as numpy"), ("objects.npy", "holds Python objects")):
        np.save(tmp_path / "objects.npy", np.array([{}, 1], object))
        with pytest.raises(ValueError, match=reason) as raised:
            text.load_tokens(tmp_path / name)
        assert "allow_pickle" not in str(raised.value)  # numpy's advice would run what is in the file
    for name, array in (("floats", np.zeros(4)), ("matrix", np.zeros((2, 2), int))):
        np.save(tmp_path / name, array)
        with pytest.raises(ValueError, match="one-dimensional array of integer"):
            text.load_tokens(tmp_path / f"{name}.npy")


class _Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_texts_are_encoded(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("aé", encoding="utf-8")
    np.testing.assert_array_equal(text.encode_text(path, _Bytes()), [97, 195, 169])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        text.encode_text(path, _Bytes())
    with pytest.raises(FileNotFoundError, match="text file"):
        text.encode_text(tmp_path / "b.txt", _Bytes())


@pytest.mark.parametrize(("length", "count"), [(100, 1), (100, 3), (100, 10), (95, 4)])
def test_passages_span_the_text_and_do_not_overlap(length: int, count: int):
    passages = text.cut_passages(np.arange(length), 10, count)
    assert passages.shape == (count, 10)
    starts = passages[:, 0]
    assert (np.diff(starts) >= 10).all()
    assert np.diff(starts, n=2).max(initial=0) <= 1  # evenly spaced to a token
    assert starts[0] == 0
    assert count == 1 or passages[-1, -1] == length - 1


def test_short_texts_are_refused():
    with pytest.raises(ValueError, match="text has 9 tokens, fewer than context=10"):
        text.cut_passages(np.arange(9), 10, 1)
    with pytest.raises(ValueError, match="context=0 must be at least 1"):
        text.cut_passages(np.arange(9), 0, 1)
    with pytest.raises(ValueError, match="passages=4 must be between 1 and 3"):
        text.cut_passages(np.arange(39), 10, 4)
    with pytest.raises(ValueError, match="passages=0"):
        text.cut_passages(np.arange(39), 10, 0)


def test_default_number_of_passages():
    assert text.passage_count(133_000, 4096, 3583, 20_000) == 6  # 21,498 tokens scored
    assert text.passage_count(9_000, 4096, 3583, 20_000) == 2  # all the text holds


def test_foreign_tokens_are_refused():
    text.check_vocabulary(np.array([0, 99]), 100)
    for tokens in ([0, 100], [-1, 5]):
        with pytest.raises(ValueError, match="another tokenizer"):
            text.check_vocabulary(np.array(tokens), 100)

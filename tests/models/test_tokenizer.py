import numpy as np
import pytest
import tokenizers

from kakeya_jax.models import ModelError, Tokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    vocabulary = {"<end>": 0, "the": 1, "moon": 2, "stone": 3, "?": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_encode_and_decode(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("the moon stone")
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [1, 2, 3])
    np.testing.assert_array_equal(tokenizer.encode("moon", add_special_tokens=True), [0, 2])
    assert tokenizer.decode(ids) == "the moon stone"
    assert tokenizer.decode([0, 1]) == "the"
    assert tokenizer.decode([0, 1], skip_special_tokens=False) == "<end> the"
    assert tokenizer.vocab_size == 5
    assert tokenizer.token_id("stone") == 3
    assert tokenizer.token_id("absent") is None
    assert tokenizer.encode("").shape == (0,)


def test_missing_or_broken_files_are_named(folder):
    with pytest.raises(ModelError, match="there is no folder"):
        load_tokenizer(folder / "absent")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_tokenizer(folder)

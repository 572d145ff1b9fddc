import lzma
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.models.pretrain_data import batch_at, batches_per_epoch, load_tokens, split_held_out


def test_shards_are_joined_in_order_plain_and_compressed(tmp_path: Path) -> None:
    first, second = np.arange(5, dtype=np.uint16), np.arange(7, 10, dtype=np.uint16)
    np.save(tmp_path / "first.npy", first)
    with lzma.open(tmp_path / "second.npy.xz", "wb") as file:
        np.save(file, second)
    joined = load_tokens([tmp_path / "first.npy", tmp_path / "second.npy.xz"])
    np.testing.assert_array_equal(joined, [0, 1, 2, 3, 4, 7, 8, 9])
    assert joined.dtype == np.uint16


@pytest.mark.parametrize("wrong", [np.zeros((2, 3), np.uint16), np.zeros(3, np.float32), np.zeros(3, np.int64)])
def test_a_file_that_is_no_shard_is_refused(wrong: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", wrong)
    with pytest.raises(ValueError, match=r"wrong\.npy holds .* a shard is a vector"):
        load_tokens([tmp_path / "wrong.npy"])


def test_held_out_tokens_are_the_last_ones() -> None:
    train, held_out = split_held_out(np.arange(10), 3)
    np.testing.assert_array_equal(train, np.arange(7))
    np.testing.assert_array_equal(held_out, [7, 8, 9])
    assert len(split_held_out(np.arange(10), 0)[1]) == 0


@pytest.mark.parametrize("num_tokens", [200, 207, 233])
def test_an_epoch_visits_every_window_once_in_a_new_order(num_tokens: int) -> None:
    tokens, length, batch_size = jnp.arange(num_tokens, dtype=jnp.uint16), 10, 3
    per_epoch = batches_per_epoch(num_tokens, batch_size, length)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        batches = [batch_at(tokens, jnp.int32(step), batch_size=batch_size, length=length, seed=0) for step in steps]
        windows = np.concatenate(batches)
        assert windows.shape == (per_epoch * batch_size, length + 1)
        np.testing.assert_array_equal(np.diff(windows, axis=1), 1)  # each is a run of neighbouring tokens
        starts = windows[:, 0]
        assert len(set(starts)) == len(starts)
        assert len({start % length for start in starts}) == 1, "one phase for all windows of an epoch"
        assert starts.min() >= 0
        assert starts.max() + length < num_tokens
        epochs.append(list(starts))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_the_seed_changes_the_order() -> None:
    tokens = jnp.arange(5000, dtype=jnp.uint16)
    one, other = (batch_at(tokens, jnp.int32(0), batch_size=8, length=16, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one, other)

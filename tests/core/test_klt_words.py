"""Codes of a transform-coded page come back, and lie where a kernel looks for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import code_words
from kakeya_jax.klt_layout import Layout
from kakeya_jax.klt_words import PageWords
from kakeya_jax.typing import StreamName

LAYOUT = Layout.of(np.array([[8, 4, 2, 0], [4, 2, 6, 2], [0, 0, 0, 0]]))  # widths need not fall


def random_classes(order: PageWords, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [
        random.integers(0, 2**width, (order.tokens, end - first, order.size)).astype(np.int32)
        for width, first, end in order.layout.ranges
    ]


@pytest.mark.parametrize("stream", ["key", "value"])
@pytest.mark.parametrize(
    ("tokens", "size", "layout"),
    [
        (128, 16, LAYOUT),
        (64, 16, Layout.of(np.array([[6, 5, 3, 1]]))),
        (128, 8, LAYOUT),
        (40, 16, LAYOUT),
        (128, 16, Layout.of(np.zeros((2, 4)))),
    ],
)
def test_codes_come_back(stream: StreamName, tokens: int, size: int, layout: Layout) -> None:
    order = PageWords(layout=layout, stream=stream, tokens=tokens, size=size)
    classes = random_classes(order)
    words = jax.jit(order.pack)([jnp.asarray(each) for each in classes])
    assert words.dtype == jnp.uint8
    assert words.shape == (order.nbytes,)
    assert order.nbytes == tokens * size * sum(map(sum, layout.widths)) // 8
    for found, expected in zip(jax.jit(order.unpack)(words), classes, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("stream", ["key", "value"])
def test_each_lane_of_a_kernel_finds_its_codes(stream: StreamName) -> None:
    """The order as the module's docstring says it, one code at a time."""
    order = PageWords(layout=LAYOUT, stream=stream, tokens=128, size=16)
    classes = random_classes(order)
    words = np.asarray(order.pack([jnp.asarray(each) for each in classes]))
    codes_of = {}  # of [tokens, 16] by head and group
    for codes, (_, first, end) in zip(classes, LAYOUT.ranges, strict=True):
        for index, flat in enumerate(LAYOUT.stored[first:end]):
            codes_of[divmod(int(flat), 4)] = codes[:, index]
    at = 0
    for head, widths in enumerate(LAYOUT.widths):
        assert order.head_offset(head) == at
        for tile in range(2):
            for group, width in enumerate(widths):
                if not width:
                    continue
                codes = codes_of[head, group][64 * tile : 64 * (tile + 1)]
                for row in range(8):
                    for column in range(4):
                        units = words[at : at + 4 * width]
                        at += 4 * width
                        found = np.asarray(code_words.unpack(jnp.asarray(units.reshape(2, -1)), width, 16))
                        if stream == "key":
                            places = [16 * (row // 2) + 4 * i + 2 * (row % 2) + h for i in range(4) for h in range(2)]
                            expected = codes[places, 4 * column : 4 * column + 4]
                        else:
                            expected = codes[16 * column : 16 * column + 16, [row, row + 8]].T
                        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert at == order.nbytes

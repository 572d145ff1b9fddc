"""How well a model predicts a text, in a unit that does not depend on its tokenizer.

    python -m kakeya_jax.models.bits_per_byte demo --text models/demo/text.txt

prints one JSON line for each model and text. Dense forward passes, no cache: this compares models with each
other; ``kakeya eval`` measures what a compressed cache does to one of them.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.typing import Array, Bool, Float, Int

SEPARATOR_ID = 0
"""The token that precedes every document in the training shards, put before the text here."""


def text_nll(model: Decoder, params: Any, ids: Int[np.ndarray, " n"], *, context: int, batch_size: int = 4) -> float:
    """Negative log-likelihood of ``ids`` in nats, summed; every token is scored once.

    Windows of ``context`` tokens start every ``context / 2``, and each scores its second half (the first one
    all of it), so that every later token is predicted from at least ``context / 2`` tokens before it.

    Raises:
        ValueError: no tokens, or an odd ``context``.
    """
    if len(ids) == 0 or context % 2:
        raise ValueError(f"{len(ids)} tokens in windows of {context}: needs at least one token, and an even context")
    windows, scored = _windows(np.concatenate([[SEPARATOR_ID], ids]).astype(np.int32), context)
    total = 0.0
    for start in range(0, len(windows), batch_size):
        chosen = slice(start, start + batch_size)
        short = batch_size - len(windows[chosen])
        batch = np.pad(windows[chosen], ((0, short), (0, 0)))
        mask = np.pad(scored[chosen], ((0, short), (0, 0)))
        total += float(_masked_nll(params, jnp.asarray(batch), jnp.asarray(mask), model))
    return total


def _windows(ids: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows ``[n, context + 1]``, padded at the end, and which of their ``context`` predictions count."""
    half = context // 2
    count = max(1, math.ceil((len(ids) - 1 - half) / half))
    padded = np.pad(ids, (0, count * half + half + 1 - len(ids)))
    positions = np.arange(count)[:, None] * half + np.arange(context + 1)
    predictions = np.arange(context)
    scored = (positions[:, 1:] < len(ids)) & ((predictions >= half) | (np.arange(count)[:, None] == 0))
    return padded[positions], scored


@functools.partial(jax.jit, static_argnames="model")
def _masked_nll(
    params: Any, windows: Int[Array, "B T+1"], scored: Bool[Array, "B T"], model: Decoder
) -> Float[Array, ""]:
    output: Any = model.apply({"params": params}, windows[:, :-1])
    logits = output.logits.astype(jnp.float32)
    target = jnp.take_along_axis(logits, windows[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(scored, jax.nn.logsumexp(logits, axis=-1) - target, 0.0))


def main(arguments: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(prog="python -m kakeya_jax.models.bits_per_byte")
    parser.add_argument("models", nargs="+", help="model folders, hub ids, or demo")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--context", type=int, default=2048, help="tokens in a window (default 2048)")
    parser.add_argument("--dtype", default="float32", help="of the computation (default float32)")
    options = parser.parse_args(arguments)

    for name in options.models:
        model, params = load(name, dtype=options.dtype)
        tokenizer = load_tokenizer(name)
        for path in options.text:
            text = path.read_text(encoding="utf-8")
            ids = tokenizer.encode(text)
            nll, size = text_nll(model, params, ids, context=options.context), len(text.encode())
            row = {
                "model": name,
                "text": path.name,
                "bytes": size,
                "tokens": len(ids),
                "context": options.context,
            }
            row |= {
                "perplexity": round(math.exp(nll / len(ids)), 3),
                "bits_per_byte": round(nll / math.log(2) / size, 4),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

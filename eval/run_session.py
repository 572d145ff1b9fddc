"""``kakeya session``: a text read into an entropy-coded file, and continued from it in another process.

A file holds every token but the newest, which no cache has read yet: its id stands in the header, and is what the model
reads first when the text goes on. A session that is continued in parts gives the tokens of one continued in one go.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import CacheShape, CompressedCache, Tables
from kakeya_jax.calibration.artifact import Calibration, load_calibration
from kakeya_jax.eval.demo import bundled_calibration
from kakeya_jax.eval.environment import environment, one_blas_thread, package_versions
from kakeya_jax.eval.outputs import check_output_file
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.text import check_vocabulary, encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.decoder import Decoder
from kakeya_jax.models.locate import DEMO, ModelError, display_name
from kakeya_jax.models.sampling import sample
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe
from kakeya_jax.session_file import SessionInfo, SessionSize, load_session, save_session, session_info
from kakeya_jax.typing import Array

CHUNK = 512
"""Tokens that are read at once."""

ROOM = 1024
"""Tokens that a session can take besides those it is made of, unless it is said how many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Text to read: a UTF-8 file, or a file of token ids.

    Attributes:
        text, tokens: at most one of them.
        first: so many tokens of it; None for all.
    """

    text: Path | None = None
    tokens: Path | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.tokens is not None:
            raise ValueError("give either --text or --tokens, not both")

    def read(self, model: str, *, offline: bool) -> np.ndarray:
        """Token ids ``[n]``, none if no file was named.

        Raises:
            ValueError, OSError: no such file, not of its kind, or shorter than what is wanted of it.
        """
        path = self.tokens or self.text
        if path is None:
            return np.zeros(0, np.int32)
        found = load_tokens(path) if self.tokens else encode_text(path, load_tokenizer(model, offline=offline))
        wanted = len(found) if self.first is None else self.first
        if not 1 <= wanted <= len(found):
            raise ValueError(
                f"{path} has {len(found)} tokens, {max(wanted, 1)} are wanted; use a longer text or --first N"
            )
        return found[:wanted]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """The options of ``kakeya session save``.

    Attributes:
        model: folder, hub id, or ``"demo"``.
        source: what to read.
        recipe: of ``klt-storage``.
        out: the file to write.
        calibration: tables of the model; the bundled model has its own.
        max_length: tokens that the session can take in all; None for ``ROOM`` more than are read.
        dtype: of weights, activations and exact tokens.
    """

    model: str
    source: Source
    recipe: str
    out: Path
    calibration: Path | None = None
    max_length: int | None = None
    dtype: str = "float32"
    offline: bool = False

    def __post_init__(self) -> None:
        if self.source.text is None and self.source.tokens is None:
            raise ValueError("no text; give either --text FILE or --tokens FILE")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype {self.dtype!r} must be float32 or bfloat16")
        check_output_file("--out", self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinueRequest:
    """The options of ``kakeya session continue``.

    Attributes:
        session: the file.
        model: whose session it is.
        source: what follows before the model goes on; it may be nothing.
        max_new_tokens: tokens to write, fewer if the text ends.
        out: where to save the session as it is then; None: nowhere.
        calibration: the file that the session was made with.
        temperature: 0 takes the most probable token.
        seed: of the draws; the token at a position is drawn alike whatever was drawn in one go.
    """

    session: Path
    model: str
    source: Source
    max_new_tokens: int = 64
    out: Path | None = None
    calibration: Path | None = None
    temperature: float = 0.0
    seed: int = 0
    offline: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens {self.max_new_tokens} must be at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"--temperature {self.temperature:g} must not be negative; 0 is greedy")
        if self.out is not None:
            check_output_file("--out", self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continued:
    """What a session went on with.

    Attributes:
        tokens: the new token ids.
        text: what they say; None without a tokenizer.
        ended: whether the last of them ends the text.
        length: tokens of the session with them.
        size: of the file written; None if none was.
    """

    tokens: tuple[int, ...]
    text: str | None
    ended: bool
    length: int
    size: SessionSize | None


def save(request: SaveRequest, *, quiet: bool = False) -> SessionInfo:
    """Reads a text through the model into a cache, and writes it as a session.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    recipe = Recipe.parse(request.recipe)
    if any(rule.codec.name != "klt-storage" for rule in recipe.rules):
        raise ValueError(
            f"recipe {request.recipe!r} is not for session files; give one of klt-storage, as klt-storage-1"
        )
    calibration = _calibration(request.model, request.calibration)
    tokens = request.source.read(request.model, offline=request.offline)
    max_length = len(tokens) + ROOM if request.max_length is None else request.max_length
    if max_length < len(tokens):
        raise ValueError(f"--max-length {max_length} is less than the {len(tokens)} tokens of the text")
    model, params = checkpoint.load(request.model, dtype=request.dtype, offline=request.offline)
    calibration.check_model(model.config, params)
    check_vocabulary(tokens, model.config.vocab_size)
    cache = CompressedCache.init(
        model.config,
        recipe,
        batch_size=1,
        max_length=max_length,
        dtype=jnp.dtype(request.dtype),
        tables=_tables(calibration, recipe),
    )
    reader = _Reader(model, params, cache, quiet=quiet)
    reader.read(tokens)
    reader.save(request.out, _about(request.model, calibration, request.dtype))
    return session_info(request.out)


def go_on(request: ContinueRequest, *, quiet: bool = False) -> Continued:
    """Loads a session and lets the model go on with it.

    Raises:
        ValueError, OSError: wrong input, or a session of another model, or one that is full; the message is one line.
    """
    info = session_info(request.session)
    held = info.about.get("next_tokens", [])
    if len(info.lengths) != 1:
        raise ValueError(f"{request.session} has {len(info.lengths)} rows; this command continues sessions of one")
    follows = request.source.read(request.model, offline=request.offline)
    tokens = np.concatenate([np.asarray(held, np.int32), follows])
    if not len(tokens):
        raise ValueError(
            f"{request.session} does not say which token comes next, for it was not written by this command; say what "
            "follows with --text or --tokens"
        )
    length = info.lengths[0] + len(tokens)
    most = info.max_length + 1  # the newest token is in no cache
    if length + request.max_new_tokens > most:
        raise ValueError(
            f"{request.session} has room for {most} tokens, {length} of them taken (with what follows): "
            f"{request.max_new_tokens} more do not fit; ask for fewer, or save it with a larger --max-length"
        )
    calibration = _calibration(request.model, request.calibration)
    dtype = info.about.get("dtype", info.dtype)
    model, params = checkpoint.load(request.model, dtype=dtype, offline=request.offline)
    calibration.check_model(model.config, params)
    _check_model(info, request, calibration, model)
    check_vocabulary(tokens, model.config.vocab_size)
    cache = load_session(request.session, tables=_tables(calibration, info.recipe))
    reader = _Reader(model, params, cache, quiet=quiet)
    reader.read(tokens)
    written = reader.write(request.max_new_tokens, temperature=request.temperature, seed=request.seed)
    size = None
    if request.out is not None:
        size = reader.save(request.out, _about(request.model, calibration, dtype))
    return Continued(
        tokens=written,
        text=_text(request, written),
        ended=written[-1] in model.config.eos_token_ids,
        length=length + len(written),
        size=size,
    )


class _Reader:
    """A model at its cache: all tokens are in it but the newest."""

    def __init__(self, model: Decoder, params: Any, cache: CompressedCache, *, quiet: bool) -> None:
        self._stop = model.config.eos_token_ids
        self._params, self._cache, self._quiet = params, cache, quiet
        self._next: np.ndarray = np.zeros(0, np.int32)

        def step(params: Any, cache: CompressedCache, tokens: Array) -> tuple[Array, CompressedCache]:
            output = cast(Any, model.apply({"params": params}, tokens, cache=cache, last_only=True))
            return output.logits[:, -1], output.cache

        self._step = jax.jit(step, donate_argnames="cache")

    def read(self, tokens: np.ndarray) -> None:
        """Appends tokens, and keeps the last one back."""
        tokens = np.concatenate([self._next, tokens]).astype(np.int32)
        starts = range(0, len(tokens) - 1, CHUNK)
        with show_progress(quiet=self._quiet) as progress:
            for index, start in enumerate(starts):
                progress(index, len(starts), f"reading {len(tokens)} tokens")
                self._logits(tokens[start : min(start + CHUNK, len(tokens) - 1)])
        self._next = tokens[-1:]

    def write(self, count: int, *, temperature: float, seed: int) -> tuple[int, ...]:
        """The next ``count`` tokens, or up to one that ends the text."""
        written: list[int] = []
        while len(written) < count and not (written and written[-1] in self._stop):
            logits = self._logits(self._next)
            position = int(self._cache.length[0])
            if temperature == 0:
                drawn = jnp.argmax(logits, axis=-1)
            else:
                key = jax.random.fold_in(jax.random.key(seed), position)
                drawn = sample(logits, key, temperature=temperature)
            written.append(int(drawn[0]))
            self._next = np.asarray(written[-1:], np.int32)
        return tuple(written)

    def save(self, path: Path, about: dict[str, Any]) -> SessionSize:
        """Writes the session as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_session(self._cache, path, about=about | {"next_tokens": self._next.tolist()})

    def _logits(self, tokens: np.ndarray) -> Array:
        logits, self._cache = self._step(self._params, self._cache, jnp.asarray(tokens)[None])
        return logits


def _calibration(model: str, path: Path | None) -> Calibration:
    if path is None and model != DEMO:
        raise ValueError("sessions need calibrated tables; give --calibration FILE (see: kakeya calibrate)")
    return load_calibration(path or bundled_calibration())


def _tables(calibration: Calibration, recipe: Recipe) -> Tables:
    with one_blas_thread():
        return calibration.tables_for(recipe)


def _check_model(info: SessionInfo, request: ContinueRequest, calibration: Calibration, model: Decoder) -> None:
    """Before tables are compared, whose message is about tables."""
    made_of = info.about.get("model_fingerprint", calibration.model)
    if made_of != calibration.model or info.shape != CacheShape.of(model.config):
        made_by = info.about.get("model", "another model")
        raise ValueError(
            f"{request.session} is a session of {made_by}, not of {request.model} with these weights; name its model"
        )


def _about(model: str, calibration: Calibration, dtype: str) -> dict[str, Any]:
    """What a session says besides its cache; no paths, for files travel."""
    return {
        "model": display_name(model),
        "model_fingerprint": calibration.model,
        "dtype": dtype,
        "date": environment()["date"],
        "packages": package_versions(),
    }


def _text(request: ContinueRequest, tokens: Sequence[int]) -> str | None:
    try:
        return load_tokenizer(request.model, offline=request.offline).decode(tokens)
    except ModelError:
        return None

"""Finished cells of a long measurement: a JSON Lines file that a killed run leaves whole and the next one goes on from.

One line for each cell, in the order in which they were finished::

    {"key": "5f2c...", "request": {...}, "result": {...}}

``key`` is a hash of the request: whatever the result depends on belongs into it (model, text, protocol, recipe, ...),
and a cell whose request has changed is measured again. A line is written at once and flushed to the disk before ``add``
returns. A last line without its end, which is what a kill in the middle of a write leaves, is cut off when the file is
opened; the cells before it are kept.
"""

import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

Data = dict[str, Any]


def cell_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of the request as JSON with sorted names: equal requests, equal keys, in any process.

    Raises:
        ValueError: the request holds what JSON has no words for, or a number that is not finite.
    """
    return hashlib.sha256(_compact(request, sort_keys=True).encode()).hexdigest()


class Cells:
    """The finished cells of one file; a context manager, because it holds the file open and locked.

    Opening makes the file if there is none, drops a half-written last line, and reads the rest.

    Args:
        path: the ``.jsonl`` file; folders that it needs are made.

    Raises:
        ValueError: a whole line is no cell, its key is not that of its request, or another process has the file open.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115  (held until close)
        try:
            self._lock()
            self._results = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Cells":
        """The open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def __len__(self) -> int:
        """Cells that are finished, of this and of other requests."""
        return len(self._results)

    def __contains__(self, request: Mapping[str, Any]) -> bool:
        """Whether the cell of this request is finished."""
        return cell_key(request) in self._results

    def get(self, request: Mapping[str, Any]) -> Any | None:
        """The result of this request's cell; None if it is not finished."""
        return self._results.get(cell_key(request))

    def add(self, request: Mapping[str, Any], result: Any) -> None:
        """Keeps a finished cell; it is on the disk when this returns.

        Raises:
            ValueError: it is there already, or holds what JSON has no words for (write ``None`` for a number that is
                not finite).
        """
        key = cell_key(request)
        if key in self._results:
            raise ValueError(f"a cell of {self.path} is finished already: {_compact(request)}")
        line = _compact({"key": key, "request": dict(request), "result": result}) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._results[key] = json.loads(line)["result"]  # what a later run will read

    def close(self) -> None:
        """Closes the file and lets others open it."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {self.path}; wait for it, or name another file") from None

    def _read(self) -> dict[str, Any]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        results: dict[str, Any] = {}
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            key, result = _parse(line, f"line {number} of {self.path}")
            results[key] = result
        return results


def _parse(line: bytes, where: str) -> tuple[str, Any]:
    try:
        cell = json.loads(line)
        key, request, result = cell["key"], cell["request"], cell["result"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where} is no finished cell; remove the file, or name another") from None
    if key != cell_key(request):
        raise ValueError(f"{where} was changed: its key is not that of its request; remove the line")
    return key, result


def _compact(data: Any, *, sort_keys: bool = False) -> str:
    try:
        return json.dumps(data, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a cell must be plain JSON: {error}") from None

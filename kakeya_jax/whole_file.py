"""Files that appear complete or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A place beside ``path`` to write to; what is there takes its name when the block ends without an error."""
    target = pathlib.Path(path)
    partial = target.with_name(target.name + ".partial")
    yield partial
    os.replace(partial, target)

"""Can what a run will write be written? Asked before the run, which may take hours."""

import os
import tempfile
from pathlib import Path


def check_output_file(option: str, path: str | os.PathLike[str]) -> None:
    """Checks that a file can be written, with the folders it needs; leaves nothing behind.

    Args:
        option: what named the file, for the message: ``"--json"``.
        path: the file; it need not exist.

    Raises:
        ValueError: it is a folder, may not be written, or lies where no file can be made.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file in it")
    if target.exists() and not os.access(target, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission; name another file")
    _check_folder(option, path, target.parent)


def check_output_folder(option: str, path: str | os.PathLike[str]) -> None:
    """Checks that a folder exists, or can be made, and that files can be written to it; leaves nothing behind.

    Raises:
        ValueError: it is a file, or no file can be made in it.
    """
    _check_folder(option, path, Path(path).expanduser())


def _check_folder(option: str, path: str | os.PathLike[str], folder: Path) -> None:
    nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise ValueError(f"{option} {path} cannot be written: {nearest} is no folder; name another place")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written: {error.strerror}: {nearest}; name another place"
        ) from None

"""Where a model's files are: a folder, a Hugging Face hub id, or the bundled demo."""

from pathlib import Path

DEMO = "demo"
"""The name of the bundled model."""

_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)


class ModelError(ValueError):
    """A model that cannot be found, read or represented; one line that says why."""


def find_folder(model: str | Path, *, offline: bool = False, revision: str | None = None) -> Path:
    """The local folder with the files of ``model``.

    Args:
        model: a folder, a hub id such as ``"Qwen/Qwen2.5-0.5B"`` (fetched into the Hugging Face cache), or
            ``"demo"``.
        offline: use only what the Hugging Face cache already holds.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: no such folder, no such repository, or it cannot be fetched.
    """
    if str(model) == DEMO:
        folder = Path(__file__).parent / DEMO
        if not (folder / "config.json").is_file():
            raise ModelError(f"the bundled model is missing from {folder}; reinstall kakeya-jax")
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{folder} is a file; give the folder that holds config.json and the weights")
    if not _looks_like_hub_id(str(model)):
        raise ModelError(f"there is no folder {folder}; give a model folder, a hub id (owner/name) or {DEMO!r}")
    return _fetch(str(model), offline=offline, revision=revision)


def display_name(model: str) -> str:
    """A hub id as it is, of a folder its own name: where it lies concerns nobody who reads the results."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _looks_like_hub_id(name: str) -> bool:
    owner, _, repository = name.partition("/")
    return bool(owner and repository) and "/" not in repository and owner not in (".", "..", "~")


def _fetch(repo_id: str, *, offline: bool, revision: str | None) -> Path:
    # Imported here: a local model needs no HTTP client.
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=list(_FILES), local_files_only=offline
        )
    except LocalEntryNotFoundError as error:
        why = "is not in the Hugging Face cache" if offline else "is not cached and the hub cannot be reached"
        raise ModelError(f"{repo_id} is no local folder, and {why}") from error
    except Exception as error:  # the client's errors share no base class (HTTP, validation, OS)
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{repo_id} is no local folder, and fetching it failed: {first_line}") from error
    return Path(folder)

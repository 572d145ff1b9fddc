"""What mkdocs asks while it builds the site: files from outside ``docs``, their links, and the list of notebooks.

Links in this repository are relative to the file they stand in, so that they work where it is read. On the site the
first page is README.md, ``notebooks`` lies inside, and code has no page: the hooks translate between the two.
"""

import json
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository that are pages, by the names of their pages."""

_LINK = re.compile(r"(?<!\!)\[([^\]]*)\]\(([^)\s]+)\)")


def notebooks() -> dict[str, str]:
    """Names of the notebooks by their page, in the order of the site: first steps, then by question."""
    first = ("quickstart", "calibrated")
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    ordered = [name for name in first if name in names] + [name for name in names if name not in first]
    return {f"notebooks/{name}.ipynb": _title(name) for name in ordered}


def on_config(config: Any) -> Any:
    """Lists the notebooks where the navigation has an empty section for them."""
    listed = [{title: page} for page, title in notebooks().items()]
    config.nav = [{"Notebooks": listed} if "Notebooks" in entry else entry for entry in config.nav]
    return config


@event_priority(100)  # before mkdocs-jupyter, which takes notebooks over
def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside ``docs``."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for page in notebooks():
        files.append(File(page, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links of the repository as links of the site; words alone where the site has no such page."""
    del config
    uri = page.file.src_uri
    source = next((name for name, of in PAGES.items() if of == uri), f"docs/{uri}")
    return _LINK.sub(lambda found: _site_link(found, source, uri, files), markdown)


def _site_link(found: re.Match[str], source: str, uri: str, files: Any) -> str:
    words, target = found.groups()
    if target.startswith("#") or re.match(r"[a-z]+:", target):
        return found[0]
    path, _, anchor = target.partition("#")
    in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = PAGES.get(in_repository) or in_repository.removeprefix("docs/")
    if files.get_file_from_path(page) is None:
        if not (ROOT / in_repository).exists():
            return found[0]  # broken in both places: mkdocs says so
        return words
    link = posixpath.relpath(page, posixpath.dirname(uri) or ".")
    return f"[{words}]({link}{'#' * bool(anchor)}{anchor})"


def _title(name: str) -> str:
    """The question of a notebook: its first heading, without the mark."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    heading = "".join(cells[0]["source"]).splitlines()[0]
    return heading.lstrip("# ").strip()

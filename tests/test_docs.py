"""The documentation: pages made from code are up to date, links resolve, the site builds without a warning."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from script_modules import load_script

import kakeya_jax

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "results" not in path.relative_to(DOCS).parts[:-1]]
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BUILT_BY_HOOKS = {"index.md", "contributing.md", "changelog.md"}

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (`pip install 'kakeya-jax[docs]'`)"
)


def navigation() -> list[str]:
    config = (ROOT / "mkdocs.yml").read_text()
    nav: Any = yaml.safe_load(config)["nav"]

    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inside = entry.values() if isinstance(entry, dict) else entry
        return [page for each in inside for page in pages(each)]

    return pages(nav)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation_once() -> None:
    listed = navigation()
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(page.relative_to(DOCS)) for page in PAGES} | BUILT_BY_HOOKS


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_codec_page_is_that_of_the_code() -> None:
    assert (DOCS / "codecs.md").read_text() == load_script("make_codecs").build(), "run: python scripts/make_codecs.py"


def test_every_public_name_of_the_core_is_in_the_reference() -> None:
    public = {name for name, value in vars(kakeya_jax).items() if name[0] != "_" and not inspect.ismodule(value)}
    documented = set(re.findall(r"^::: kakeya_jax\.(\w+)$", (DOCS / "api" / "core.md").read_text(), re.MULTILINE))
    assert documented == public


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda path: path.stem)
def test_names_of_the_reference_exist(page: Path) -> None:
    names = re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@needs_mkdocs
def test_links_of_the_repository_become_links_of_the_site() -> None:
    class Files:
        def get_file_from_path(self, path: str) -> str | None:
            return path if path in ("klt.md", "index.md", "notebooks/quickstart.ipynb") else None

    class Page:
        class file:  # noqa: N801
            src_uri = ""

    def translated(uri: str, text: str) -> str:
        Page.file.src_uri = uri
        return load_script("docs_hooks").on_page_markdown(text, Page, None, Files())

    assert translated("index.md", "[a](docs/klt.md#limits)") == "[a](klt.md#limits)"
    assert translated("klt.md", "[a](../README.md)") == "[a](index.md)"
    assert translated("api/core.md", "[a](../klt.md) [b](#here)") == "[a](../klt.md) [b](#here)"
    assert translated("klt.md", "[a](../notebooks/quickstart.ipynb)") == "[a](notebooks/quickstart.ipynb)"
    assert translated("klt.md", "[code](../pyproject.toml) is no page") == "code is no page"
    assert translated("klt.md", "[a](missing.md) [b](https://x.org/y)") == "[a](missing.md) [b](https://x.org/y)"


@needs_mkdocs
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert "KV-cache compression for LLM decoders in JAX" in home
    core = (tmp_path / "site" / "api" / "core" / "index.html").read_text()
    assert 'id="kakeya_jax.CompressedCache.init"' in core
    notebook = (tmp_path / "site" / "notebooks" / "quickstart" / "index.html").read_text()
    assert "What does a compressed cache cost" in notebook

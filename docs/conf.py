"""How the site is built: `sphinx-build --fail-on-warning docs docs/_build`. It needs no network, to build or to read."""

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]

project = "notify_worker"
author = "the notify_worker maintainers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = PROJECT["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = "notify_worker"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_repository": SOURCE, "source_branch": "main", "source_directory": "docs/"}


def link_to_the_repository(app: Sphinx, path: Path, document: str, text: list[str]) -> None:  # noqa: ARG001
    """Point the links of an included page, which are relative to the checkout, at the repository."""
    text[0] = re.sub(r"\]\((?!https?:|#)", f"]({SOURCE}/blob/main/", text[0])


def setup(app: Sphinx) -> None:
    """Ask Sphinx for each text that a page includes."""
    app.connect("include-read", link_to_the_repository)

"""Derive every link to the repository from the one address in pyproject.toml.

As a Sphinx extension this switches the buttons of the book's pages on (repository, issues, Binder, Colab) when
`[project.urls] Repository` is set, and off when it is not. As a command it copies the address into CITATION.cff, and
into a first cell of each notebook that installs the library where it is missing, as on Colab. Binder installs what
environment.yml names.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
INSTALL = "install-mirlib"  # the identity of the cell
INSTALLS = """\
# Where you have only this file, as on Colab, this installs the library.
import importlib.util

if importlib.util.find_spec("mirlib") is None:
    %pip install --quiet "mirlib[train] @ git+{url}" myst-nb"""


def repository_url(pyproject: str) -> str | None:
    """Return the repository's address.

    Args:
        pyproject: The text of pyproject.toml.

    Returns:
        The address without a slash at its end, or None while it is unset.

    Raises:
        ValueError: If the address is not one of https.
    """
    url = tomllib.loads(pyproject)["project"].get("urls", {}).get("Repository", "").rstrip("/")
    if url and not re.fullmatch(r"https://[\w.-]+/[\w./-]+", url):
        raise ValueError(f"[project.urls] Repository in pyproject.toml must be https://HOST/OWNER/NAME, not {url!r}.")
    return url or None


def theme_options(url: str | None) -> dict[str, Any]:
    """Return the theme's options for an address.

    Binder and Colab open notebooks from GitHub; for another host only the repository and issue buttons appear.

    Args:
        url: The repository's address, or None while it is unset.
    """
    if url is None:
        return {
            "repository_url": "",
            "use_repository_button": False,
            "use_issues_button": False,
            "launch_buttons": {},
        }
    launch = {}
    if url.startswith("https://github.com/"):
        launch = {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }
    return {
        "repository_url": url,
        "repository_branch": BRANCH,
        "path_to_docs": "",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": launch,
    }


def citation(text: str, url: str | None) -> str:
    """Return CITATION.cff with the address in it, or without one while it is unset.

    Args:
        text: The file as it is.
        url: The repository's address, or None.
    """
    text = re.sub(r"^repository-code:.*\n", "", text, flags=re.MULTILINE)
    return (
        text if url is None else re.sub(r"^(license:.*\n)", rf'\1repository-code: "{url}"\n', text, flags=re.MULTILINE)
    )


def notebook(text: str, url: str | None) -> str:
    """Return a notebook with the cell that installs the library below its title, or without one.

    Args:
        text: The file as it is.
        url: The repository's address, or None.
    """
    found = json.loads(text)
    cells = [cell for cell in found["cells"] if cell["id"] != INSTALL]
    if url is not None:
        source = INSTALLS.format(url=url).splitlines(keepends=True)
        cell = {"cell_type": "code", "execution_count": None, "id": INSTALL}
        cells.insert(1, cell | {"metadata": {"tags": ["remove-cell"]}, "outputs": [], "source": source})
    return json.dumps({**found, "cells": cells}, indent=1, ensure_ascii=False) + "\n"


def setup(app: Any) -> dict[str, bool]:
    """Set the theme's options when Sphinx has read its configuration."""
    options = theme_options(repository_url((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    app.connect("config-inited", lambda _, config: config.html_theme_options.update(options))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> int:
    """Write the address into CITATION.cff and the notebooks, and say what it is."""
    url = repository_url((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for path in (ROOT / "CITATION.cff", *(ROOT / "notebooks").glob("*.ipynb")):
        write = notebook if path.suffix == ".ipynb" else citation
        path.write_text(write(path.read_text(encoding="utf-8"), url), encoding="utf-8")
    print(url or "The repository's address is unset: no page and no citation names one.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

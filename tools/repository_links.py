"""Derive every link to the repository from the one address in pyproject.toml.

As a Sphinx extension this switches the buttons of the book's pages on (repository, issues, Binder, Colab) when
`[project.urls] Repository` is set, and off when it is not. As a command it copies the address into CITATION.cff.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"


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


def setup(app: Any) -> dict[str, bool]:
    """Set the theme's options when Sphinx has read its configuration."""
    options = theme_options(repository_url((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    app.connect("config-inited", lambda _, config: config.html_theme_options.update(options))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> int:
    """Write the address into CITATION.cff and say what it is."""
    url = repository_url((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    path = ROOT / "CITATION.cff"
    path.write_text(citation(path.read_text(encoding="utf-8"), url), encoding="utf-8")
    print(url or "The repository's address is unset: no page and no citation names one.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

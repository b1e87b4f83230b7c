"""Before a build in CI: point the README's links, and the project's, at the repository that the build runs for.

On the package index there is no folder beside the README that a relative link could lead into.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def absolute(readme: str, folder: Path, repository: str, ref: str) -> str:
    """Return the README of a folder with links into the repository, pictures as raw files."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({repository}/{kind}/{ref}/{(folder / match['path']).as_posix()})"

    return re.sub(r"(?P<picture>!?)\[(?P<text>[^][]*)\]\((?!https?:|#)(?P<path>[^)]+)\)", link, readme)


def urls(repository: str) -> str:
    """Return the table of `pyproject.toml` that the index shows beside the description."""
    pages = {
        "Source": "",
        "Documentation": "/tree/main/docs",
        "Issues": "/issues",
        "Changelog": "/blob/main/CHANGELOG.md",
    }
    return "[project.urls]\n" + "".join(f'{name} = "{repository}{page}"\n' for name, page in pages.items())


def main(repository: str, ref: str) -> None:
    """Change the README and `pyproject.toml` of every distribution, in the working copy of a build."""
    for project in (Path(), *sorted(Path("packages").iterdir())):
        readme, settings = project / "README.md", project / "pyproject.toml"
        text = readme.read_text(encoding="utf-8")
        readme.write_text(absolute(text, project, repository, ref), encoding="utf-8")
        settings.write_text(f"{settings.read_text(encoding='utf-8')}\n{urls(repository)}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

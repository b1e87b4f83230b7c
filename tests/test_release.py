"""What a release stands on agrees with itself."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGE = runpy.run_path(str(ROOT / ".github/project_page.py"))
REPOSITORY = "https://example.org/some/faces"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_every_python_that_the_makefile_takes():
    low, high = (int(minor) for minor in re.findall(r"\(3, (\d+)\)", read("Makefile").split("SUPPORTED", 2)[1]))
    matrix = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(low, high + 1)]
    assert f'requires-python = ">=3.{low},<3.{high + 1}"' in read("pyproject.toml")


def test_pre_commit_formats_with_the_ruff_of_ci():
    hooks = {repo["repo"]: repo.get("rev") for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]}
    pinned = re.search(r"^ruff==(\S+)", read("constraints.txt"), re.MULTILINE)[1]
    assert hooks["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pinned}"


def test_a_release_publishes_what_ci_built():
    release = yaml.safe_load(read(".github/workflows/release.yml"))["jobs"]
    built = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["build"]["steps"][-1]["with"]["name"]
    assert release["publish"]["steps"][0]["with"]["name"] == built
    assert set(release["publish"]["needs"]) == {"ci", "version"}


PROJECTS = ["", *(f"packages/{folder.name}" for folder in (ROOT / "packages").iterdir())]


@pytest.mark.parametrize("folder", PROJECTS)
def test_on_the_index_every_link_of_a_readme_leads_somewhere(folder):
    page = PAGE["absolute"](read(f"{folder or '.'}/README.md"), Path(folder), REPOSITORY, "v1")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)
    for kind, path in re.findall(rf"{REPOSITORY}/(blob|raw)/v1/([^)#]+)", page):
        file = ROOT / path
        assert file.exists()
        assert not folder or path.startswith(folder)
        assert kind == ("raw" if file.suffix in (".webp", ".png") else "blob")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_every_project_gets_its_addresses(tmp_path, monkeypatch):
    import tomllib

    for folder in PROJECTS:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in ("README.md", "pyproject.toml"):
            (tmp_path / folder / name).write_text(read(f"{folder or '.'}/{name}"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    PAGE["main"](REPOSITORY, "v1")
    for folder in PROJECTS:
        settings = tomllib.loads((tmp_path / folder / "pyproject.toml").read_text(encoding="utf-8"))
        assert settings["project"]["urls"]["Issues"] == f"{REPOSITORY}/issues"
        assert f"]({REPOSITORY}/blob/v1/" in (tmp_path / folder / "README.md").read_text(encoding="utf-8")


def test_every_licence_of_the_wheel_is_in_it_once():
    settings = read("pyproject.toml")
    files = re.search(r"license-files = \[(.*)\]", settings)[1]
    [excluded] = re.findall(r'exclude = \["/(.*)"\]', settings)
    shipped = [file.relative_to(ROOT).as_posix() for file in ROOT.glob(excluded)]
    assert shipped
    assert all(f'"{file}"' in files for file in shipped)

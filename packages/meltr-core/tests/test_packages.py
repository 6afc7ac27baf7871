"""The metadata of every package: one version, the licence inside, links that work on a package index."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import meltr

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = sorted(ROOT.glob("packages/*/pyproject.toml"))

if not PACKAGES:
    pytest.skip("the tests run outside the repository", allow_module_level=True)


@pytest.fixture(params=PACKAGES, ids=lambda path: path.parent.name)
def package(request) -> Path:
    return request.param.parent


def project(package: Path) -> dict[str, Any]:
    return tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_metadata_is_complete(package):
    found = project(package)
    assert found["name"] == package.name
    assert found["version"] == meltr.__version__
    assert found["authors"]
    assert all(url.startswith("https://") for url in found["urls"].values())
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(found["classifiers"])
    (source,) = [each for each in (package / "src").iterdir() if each.is_dir()]
    assert (source / "py.typed").is_file()


def test_the_licence_lies_in_the_package(package):
    """A wheel is built from the package's folder alone."""
    assert project(package)["license-files"] == ["LICENSE"]
    assert (package / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_readme_links_to_nothing_that_a_package_index_lacks(package):
    text = (package / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_changelog_has_one_section_a_version():
    titles = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert len(titles) == len(set(titles))
    assert titles[0] in ("Unreleased", meltr.__version__)


def test_an_audit_without_an_answer_is_a_failure():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "benchmarks" / "audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    own = {"name": "own", "skip_reason": audit.OWN}
    unknown = {"name": "far", "skip_reason": "Dependency not found"}
    fine = {"name": "fine", "version": "1", "vulns": []}
    bad = {"name": "bad", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    assert audit.verdict([own, fine])[0] == 0
    assert audit.verdict([own, fine, unknown]) == (
        0,
        [
            "1 packages audited, 0 vulnerabilities, 1 packages not audited",
            "not audited, because the service does not know them: far",
        ],
    )
    status, lines = audit.verdict([fine, bad])
    assert (status, lines[0]) == (1, "bad 1: CVE-1, mended in 2")
    status, lines = audit.verdict([own, unknown])
    assert (status, lines[-1][:19]) == (2, "NOTHING WAS AUDITED")

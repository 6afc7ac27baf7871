"""Renders the templates of one kind into a new folder: completely, or not at all. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote, urlparse

from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry
from meltr.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
"""One folder per kind, and ``common``; every file ends in ``.tmpl``, and ``PACKAGE`` stands for the import name."""

RESERVED = ("auto", "builtin", "core", "kit", "meltr", "none", "test", "testing", "tests")
"""Names that mean something else: to the command line, to Python packaging, or to core."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Kind:
    """One kind of backbone.

    Args:
        summary: One line for ``meltr list`` and the README.
        words: Options of ``meltr run`` besides the backbone.
        extras: Extras of meltr-core that it needs.
        needs: Other packages that it needs.
        epochs: Of its preset.
        lr: Of its preset.
    """

    summary: str
    words: str = ""
    extras: str = ""
    needs: tuple[str, ...] = ()
    epochs: int = 5
    lr: float = 0.01


KINDS: Mapping[str, Kind] = {
    "plain": Kind("a perceptron that classifies points and restores noisy ones."),
    "image": Kind("a small convolutional network that classifies images and tells quarter turns.", needs=("pillow",)),
    "text": Kind("a bag of words that classifies texts and finds a hidden word.", words="--sample"),
    "video": Kind(
        "two small towers that answer questions about videos and search them.",
        words="--task qa --dataset msvd --sample",
        extras="[text,video]",
    ),
}
"""Kind -> what its templates need."""


def render(name: str, kind: str, folder: Path, registry: Registry) -> Path:
    """Write a package for the backbone `name` into ``folder/meltr-NAME``.

    Args:
        name: Name of the backbone: lower-case letters and digits, with hyphens between words.
        kind: A key of `KINDS`.
        folder: Parent of the new folder; created if missing.
        registry: The plugins found; their names are taken.

    Returns:
        The new folder.

    Raises:
        UserError: If the name cannot be used or is taken, there is no such kind, or the folder exists.
    """
    _check_name(name, registry)
    if kind not in KINDS:
        raise UserError(f"--kind {kind}: there is no such kind of backbone", did_you_mean(kind, KINDS))
    target = folder / f"meltr-{name}"
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} already exists; nothing is written", "Remove it, or choose another --output-dir.")
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise UserError(f"--output-dir {folder}: {parent} is not a folder", "Choose another folder.")
    values = _values(name, kind)
    files = {
        place: text for source in ("common", kind) for place, text in _rendered(TEMPLATES / source, values).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".meltr-{name}.", dir=folder))
    try:
        for place, text in files.items():
            (beside / place).parent.mkdir(parents=True, exist_ok=True)
            (beside / place).write_text(text, encoding="utf-8")
        beside.chmod(0o755)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _check_name(name: str, registry: Registry) -> None:
    """Reject a name that is no identifier, means something else, or is taken."""
    if not _NAME.fullmatch(name):
        hint = "Use lower-case letters and digits, beginning with a letter, with hyphens between words: my-net"
        raise UserError(f"{name!r} cannot be the name of a backbone and of a Python package", hint)
    if name in RESERVED:
        raise UserError(f"the name {name!r} is reserved", f"Choose another one than {', '.join(RESERVED)}.")
    backbones = {each: registry.owner("backbone", each) for each in registry.backbones}
    for kind, owners in (("backbone", backbones), ("plugin", registry.sources())):
        if name in owners:
            raise UserError(f"there is already a {kind} {name!r}, of {owners[name]}", "Choose another name.")


def _values(name: str, kind: str) -> dict[str, str]:
    """Return what the placeholders of the templates stand for."""
    chosen = KINDS[kind]
    major, minor, *_ = __version__.split(".")
    core = f"meltr-core{chosen.extras}>={major}.{minor},<{major}.{int(minor) + 1}"
    return {
        "name": name,
        "package": f"meltr_{name.replace('-', '_')}",
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "summary": chosen.summary[0].upper() + chosen.summary[1:],
        "words": chosen.words,
        "core": '", "'.join((core, *chosen.needs)),
        "extras": chosen.extras,
        "epochs": str(chosen.epochs),
        "lr": str(chosen.lr),
        "sources": _sources(),
    }


def _sources() -> str:
    """Return where uv finds meltr-core if it was installed from a folder, a file or a repository, not from an index."""
    try:
        record = importlib.metadata.distribution("meltr-core").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    source = _source(json.loads(record or "{}"))
    if not source:
        return ""
    words = ", ".join(f"{key} = {json.dumps(value)}" for key, value in source.items())
    reason = "# meltr-core was installed from here. Remove the section to take it from a package index."
    return f"\n{reason}\n[tool.uv.sources]\nmeltr-core = {{ {words} }}"


def _source(found: Mapping[str, Any]) -> dict[str, str | bool]:
    """Return what uv calls the place of an installation; `found` is its record by PEP 610, empty for an index."""
    if "url" not in found:
        return {}
    below = {"subdirectory": found["subdirectory"]} if "subdirectory" in found else {}
    if found.get("vcs_info", {}).get("vcs") == "git":
        return {"git": found["url"], "rev": found["vcs_info"]["commit_id"], **below}
    url = urlparse(found["url"])
    if url.scheme != "file":
        return {"url": found["url"], **below}
    path = Path(unquote(url.path)).as_posix()
    return {"path": path, "editable": True} if "dir_info" in found else {"path": path}


def _rendered(folder: Path, values: Mapping[str, str]) -> dict[Path, str]:
    """Return the files of one folder of templates: place -> text."""
    found = {}
    for path in sorted(folder.rglob("*.tmpl")):
        place = path.relative_to(folder).as_posix().removesuffix(".tmpl").replace("PACKAGE", values["package"])
        text = Template(path.read_text(encoding="utf-8")).substitute(values)
        found[Path(place)] = text.rstrip("\n") + "\n" if text.strip() else ""
    return found

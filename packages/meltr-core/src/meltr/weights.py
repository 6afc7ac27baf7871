"""Published weights: read a file without running code from it, and account for every key.

Nothing is skipped silently: a `LoadReport` states what happened to each key and to each parameter of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from meltr.errors import UserError
from meltr.limits import check_zip

_WRAPPERS = ("state_dict", "model", "module")


def read_weights(path: Path, *, stand_ins: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the names and tensors of a safetensors file or of a state dict saved by torch.

    The state dict may be nested in a checkpoint under ``state_dict`` or ``model``; a ``module.`` prefix is removed.

    Args:
        path: The file.
        stand_ins: Prefixes of the dotted names of classes that a checkpoint may name beside its tensors. Empty classes
            replace them: none of their code is imported or run, and they need not be installed.

    Raises:
        UserError: If the file is missing or broken, names other classes or functions, or holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = _load(path, tuple(stand_ins))
    except UserError:
        raise
    except Exception as error:  # a broken file can make either reader raise anything
        raise UserError(
            f"{path} cannot be read as weights ({path.stat().st_size:,} bytes){_instead(path, error)}.",
            "Give a .safetensors file, or a state dict saved with torch.save. A file that is too short was not "
            "copied completely: download it again.",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict.", "Give a file with names and tensors, nothing else.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _instead(path: Path, error: Exception) -> str:
    """Return what a file is instead, or what its reader says; never advice to load it in another, unsafe way."""
    with path.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS, not the file itself (fetch it with `git lfs pull`)"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ": it is a web page, perhaps an error or a question of the server that it came from"
    if not head:
        return ": it is empty"
    cause = str(error).strip().partition("\n")[0]
    if "weights_only" in cause or "weights only" in cause.lower():
        cause = "it is not a pickle of tensors"
    return f": {type(error).__name__}: {cause}" if cause else f": {type(error).__name__}"


def _load(path: Path, stand_ins: tuple[str, ...]) -> object:
    """Load a file saved by torch; UserError if it names classes or functions outside tensors and `stand_ins`."""
    if is_zipfile(path):
        check_zip(path)
    named = sorted(get_unsafe_globals_in_checkpoint(path)) if is_zipfile(path) else []
    foreign = [name for name in named if not name.startswith(stand_ins)]
    if foreign:
        raise UserError(
            f"{path} was refused: beside tensors it asks for {some(foreign)}, and loading that could run code.",
            "None of its code was run. Download the file from its official source, or save its state dict alone with "
            "torch.save on a machine where you trust it.",
        )
    with safe_globals([(type("StandIn", (), {}), name) for name in named]):
        return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class LoadReport:
    """What happened to every key of a file and to every parameter of the model.

    Args:
        source: The file.
        loaded: Model names that were loaded.
        missing: Model names that the file lacks; they stay as initialised. Index buffers do not count.
        reshaped: Model name -> (shape in the file, shape in the model); not loaded.
        unexpected: Unknown keys of the file.
        ignored: Key of the file -> why it was not needed.
        adapted: Model name -> how the loaded tensor differs from the tensor in the file.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if every parameter of the model was loaded."""
        return not self.missing and not self.reshaped

    def about(self, part: Sequence[str]) -> LoadReport:
        """Return the report for a file that holds only one part of the model.

        Args:
            part: Prefixes of the model's names; names outside the part do not count as missing.
        """
        return replace(self, missing=tuple(name for name in self.missing if name.startswith(tuple(part))))

    def __str__(self) -> str:
        """Return the report as one paragraph."""
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.missing:
            parts.append(f"{len(self.missing)} stay as initialised ({_heads_of(self.missing)})")
        if self.reshaped:
            shapes = [f"{name} {list(have)} -> {list(want)}" for name, (have, want) in self.reshaped.items()]
            parts.append(f"{len(shapes)} have another shape and stay as initialised ({some(shapes)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} keys are unknown ({some(self.unexpected)})")
        parts += [f"{name}: {how}" for name, how in self.adapted.items()]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(key)
        parts += [f"{len(keys)} skipped: {reason}" for reason, keys in reasons.items()]
        return "; ".join(parts) + "."


def some(items: Sequence[str], most: int = 3) -> str:
    """Return the first few of `items` as text."""
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def looks_like(state: Mapping[str, Tensor], known: Sequence[tuple[Sequence[str], str]]) -> str:
    """Return a description of the model that a state dict belongs to.

    Args:
        state: Names and tensors.
        known: Pairs of name prefixes, all of which the model has, and its description; the first match counts.
    """
    for prefixes, name in known:
        if all(any(key.startswith(prefix) for key in state) for prefix in prefixes):
            return name
    return f"an unknown model, with keys such as {some(sorted(state))}"


@dataclass(frozen=True)
class FileKind:
    """A kind of file of weights, with the text of errors about other files.

    Args:
        name: The kind, with its article: ``a checkpoint of X``.
        hint: Which files to use.
        size_hint: What to do if the model in the file has another size.
        known: Other models (see `looks_like`).
    """

    name: str
    hint: str
    size_hint: str
    known: Sequence[tuple[Sequence[str], str]] = ()

    def refusal(self, path: Path | str, state: Mapping[str, Tensor], why: str) -> UserError:
        """Return the error for a file of another kind."""
        return UserError(f"{path} is not {self.name}: {why}. It looks like {looks_like(state, self.known)}.", self.hint)

    def check_shapes(self, report: LoadReport, part: Sequence[str] = ("",), *, size: str = "") -> None:
        """Check that the tensors of a part of the model have the same shapes in the file.

        Args:
            report: The report from `compare`.
            part: Prefixes of the model's names; default: the whole model.
            size: The size of the model in the file, in words, if it is known.

        Raises:
            UserError: With the first such tensor and both shapes.
        """
        wrong = {name: shapes for name, shapes in report.reshaped.items() if name.startswith(tuple(part))}
        if wrong:
            name, (have, want) = next(iter(wrong.items()))
            raise UserError(
                f"{report.source} is {self.name} of another size{f' ({size})' if size else ''}: {len(wrong)} tensors "
                f"have another shape (first: {name} is {list(have)}, the model's {list(want)}).",
                self.size_hint,
            )

    def check_missing(
        self,
        report: LoadReport,
        state: Mapping[str, Tensor],
        part: Sequence[str] = ("",),
        *,
        called: str = "model",
        spared: Sequence[str] = (),
    ) -> None:
        """Check that the file has every tensor of a part of the model.

        Args:
            report: The report from `compare`.
            state: Content of the file.
            part: Prefixes of the model's names; default: the whole model.
            called: Name of the part in the message.
            spared: Names that may be missing.

        Raises:
            UserError: With the first missing tensor, and what the file looks like.
        """
        missing = [name for name in report.missing if name.startswith(tuple(part)) and name not in spared]
        if missing:
            why = f"it lacks {len(missing)} tensors of the {called} (first: {missing[0]})"
            raise self.refusal(report.source, state, why)

    def check_whole(self, report: LoadReport, state: Mapping[str, Tensor], part: Sequence[str]) -> None:
        """Check that a part of the model is loaded completely.

        Args:
            report: The report from `compare`.
            state: Content of the file.
            part: Prefixes of the model's names.

        Raises:
            UserError: With the first tensor that is not loaded.
        """
        lacking = [name for name in (*report.missing, *report.reshaped) if name.startswith(tuple(part))]
        if lacking:
            why = f"{len(lacking)} tensors are missing or have another shape (first: {lacking[0]})"
            raise self.refusal(report.source, state, why)


def _heads_of(names: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))


def compare(
    model: nn.Module,
    renamed: Mapping[str, Tensor],
    *,
    source: Path | str,
    unexpected: Sequence[str] = (),
    ignored: Mapping[str, str] | None = None,
    adapted: Mapping[str, str] | None = None,
    skip: Callable[[str], bool] | None = None,
) -> LoadReport:
    """Return the report of what `copy_into` would load; changes nothing.

    Args:
        model: The model.
        renamed: The state dict, under the model's own names. Names that the model lacks are ignored and reported.
        source: The file.
        unexpected: Unknown keys of the file.
        ignored: Key of the file -> why it was not needed.
        adapted: Name of the model -> how `renamed` differs from the file.
        skip: Returns True for names of the model that need not be in a file (constant buffers).
    """
    own = {name: value for name, value in model.state_dict().items() if skip is None or not skip(name)}
    loaded, reshaped, left_out = [], {}, dict(ignored or {})
    for name, value in renamed.items():
        if name not in own:
            left_out[name] = "the model has no such part"
        elif value.shape != own[name].shape:
            reshaped[name] = (tuple(value.shape), tuple(own[name].shape))
        else:
            loaded.append(name)
    missing = tuple(name for name in own if name not in renamed)
    changed = {name: how for name, how in (adapted or {}).items() if name in loaded}
    return LoadReport(str(source), tuple(loaded), missing, reshaped, tuple(unexpected), left_out, changed)


def copy_into(model: nn.Module, renamed: Mapping[str, Tensor], report: LoadReport) -> LoadReport:
    """Copy the tensors in ``report.loaded`` into the model, and return the report."""
    own = model.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(renamed[name])
    return report

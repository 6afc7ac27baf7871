"""Published weights: read a file without running code from it, and account for every key of it.

Nothing is left out silently: a `LoadReport` says what became of each key and of each parameter of the model.
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

_WRAPPERS = ("state_dict", "model", "module")


def read_weights(path: Path, *, stand_ins: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return names and tensors of a safetensors file or of a state dict that torch saved.

    A state dict may lie inside a checkpoint under ``state_dict`` or ``model``; a ``module.`` prefix is taken off.

    Args:
        path: The file.
        stand_ins: Beginnings of dotted names of classes that a checkpoint may name beside its tensors. Empty classes
            take their place: nothing of theirs is imported or run, and they need not be installed.

    Raises:
        UserError: If it is not there, is broken, names other classes or functions, or holds no state dict.
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
        cause = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        raise UserError(
            f"{path} cannot be read ({path.stat().st_size:,} bytes): {type(error).__name__}: {cause}",
            "Give a .safetensors file, or a state dict saved with torch.save. A file that is too short was not copied "
            "to its end: get it again.",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict.", "Give a file with names and tensors, nothing else.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _load(path: Path, stand_ins: tuple[str, ...]) -> object:
    """Load what torch saved; UserError if it names classes or functions that are neither tensors nor to be replaced."""
    named = sorted(get_unsafe_globals_in_checkpoint(path)) if is_zipfile(path) else []
    foreign = [name for name in named if not name.startswith(stand_ins)]
    if foreign:
        raise UserError(
            f"{path} was refused: beside tensors it asks for {some(foreign)}, and loading that could run code.",
            "Nothing of it was run. Get the file from its official source, or save its state dict alone with "
            "torch.save where you trust it.",
        )
    with safe_globals([(type("StandIn", (), {}), name) for name in named]):
        return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of a file and of every parameter of the model.

    Args:
        source: The file.
        loaded: Our names that were loaded.
        missing: Our names that the file does not have: they stay as initialised. Index buffers do not count.
        reshaped: Our name -> (shape in the file, shape in the model): not loaded.
        unexpected: Keys of the file that nobody knows.
        ignored: Key of the file -> why it was not needed.
        adapted: Our name -> how what was loaded differs from what the file has.
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
        """Return the report for a file that is for one part of the model only.

        Args:
            part: Beginnings of our names; names outside it do not count as missing.
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
        parts += [f"{len(keys)} left out: {reason}" for reason, keys in reasons.items()]
        return "; ".join(parts) + "."


def some(items: Sequence[str], most: int = 3) -> str:
    """Return the first few of `items` in words."""
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def looks_like(state: Mapping[str, Tensor], known: Sequence[tuple[Sequence[str], str]]) -> str:
    """Return in words which model a state is of.

    Args:
        state: Names and tensors.
        known: Beginnings of names, all of which the model has, and what to call it; the first that fits counts.
    """
    for prefixes, name in known:
        if all(any(key.startswith(prefix) for key in state) for prefix in prefixes):
            return name
    return f"something else, with keys such as {some(sorted(state))}"


@dataclass(frozen=True)
class FileKind:
    """A kind of file of weights, with what to say of a file that is not one.

    Args:
        name: With its article: ``a checkpoint of X``.
        hint: Which files to give.
        size_hint: What to do with a file of another size.
        known: Other models, as for `looks_like`.
    """

    name: str
    hint: str
    size_hint: str
    known: Sequence[tuple[Sequence[str], str]] = ()

    def refusal(self, path: Path | str, state: Mapping[str, Tensor], why: str) -> UserError:
        """Return the error for a file that is something else."""
        return UserError(f"{path} is not {self.name}: {why}. It looks like {looks_like(state, self.known)}.", self.hint)

    def check_shapes(self, report: LoadReport, part: Sequence[str] = ("",), *, size: str = "") -> None:
        """Check that no tensor of a part of the model has another shape in the file.

        Args:
            report: What `compare` found.
            part: Beginnings of our names; default: the whole model.
            size: The size of the file in words, if it is known.

        Raises:
            UserError: Naming the first tensor and both shapes.
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
            report: What `compare` found.
            state: Content of the file.
            part: Beginnings of our names; default: the whole model.
            called: What the part is called in the message.
            spared: Names that may be missing.

        Raises:
            UserError: Naming the first tensor, and what the file looks like.
        """
        missing = [name for name in report.missing if name.startswith(tuple(part)) and name not in spared]
        if missing:
            why = f"it lacks {len(missing)} tensors of the {called} (first: {missing[0]})"
            raise self.refusal(report.source, state, why)

    def check_whole(self, report: LoadReport, state: Mapping[str, Tensor], part: Sequence[str]) -> None:
        """Check that a part of the model is loaded completely.

        Args:
            report: What `compare` found.
            state: Content of the file.
            part: Beginnings of our names.

        Raises:
            UserError: Naming the first tensor that is not.
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
    """Return what `copy_into` would do with a state; changes nothing.

    Args:
        model: The model.
        renamed: The state, under the model's own names. A name that the model does not have is ignored, and said so.
        source: The file.
        unexpected: Keys of the file that nobody knows.
        ignored: Key of the file -> why it was not needed.
        adapted: Name of the model -> how `renamed` differs from the file.
        skip: Tells which names of the model need not be in a file (constant buffers).
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
    """Copy what `report` says fits into the model, and return the report."""
    own = model.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(renamed[name])
    return report

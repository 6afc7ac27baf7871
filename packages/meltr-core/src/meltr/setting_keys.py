"""The settings that exist for a run: their full paths, and guesses for misspelt ones. Imports no torch."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from meltr.errors import PluginError, UserError
from meltr.plugins import Registry, load_object
from meltr.specs import (
    BackboneInfo,
    BilevelSpec,
    CombinerInfo,
    DataSpec,
    EstimatorInfo,
    RunSpec,
    SchemeInfo,
    TrainSpec,
)

SECTIONS: dict[str, type[BaseModel]] = {"train": TrainSpec, "bilevel": BilevelSpec, "data": DataSpec}
OPTION_SECTIONS = ("options", "combiner_options", "scheme_options", "estimator_options")


class Parts(NamedTuple):
    """The parts of a run besides its backbone, each with its own settings.

    Args:
        combiner: Its settings are ``combiner_options.*``.
        scheme: Its settings are ``scheme_options.*``.
        estimator: Its settings are ``estimator_options.*``.
    """

    combiner: CombinerInfo
    scheme: SchemeInfo
    estimator: EstimatorInfo

    @classmethod
    def named(
        cls, registry: Registry, *, combiner: str | None = None, scheme: str | None = None, estimator: str | None = None
    ) -> Parts:
        """Return the parts with these names; None means the default one.

        Raises:
            UserError: If a name is unknown.
        """
        return cls(
            registry.combiner(combiner or DEFAULTS["combiner"]),
            registry.scheme(scheme or DEFAULTS["scheme"]),
            registry.estimator(estimator or DEFAULTS["estimator"]),
        )


DEFAULTS: Mapping[str, str] = {
    "combiner": RunSpec.model_fields["combiner"].default,
    "scheme": BilevelSpec.model_fields["scheme"].default,
    "estimator": BilevelSpec.model_fields["estimator"].default,
}
"""The parts of a run by default."""


class Keys:
    """The settings that exist for one backbone and the other parts of a run.

    Args:
        registry: The plugins found.
        backbone: The backbone whose ``options.*`` exist; None: none.
        parts: The parts whose ``combiner_options.*``, ``scheme_options.*`` and ``estimator_options.*`` exist; None: the
            default parts.
    """

    def __init__(self, registry: Registry, backbone: BackboneInfo | None, parts: Parts | None = None) -> None:
        self.registry = registry
        self.backbone = backbone
        self.parts = parts = parts or Parts.named(registry)
        self.models: dict[str, type[BaseModel]] = {"": RunSpec, **SECTIONS}
        options = (backbone.options if backbone else None, *(part.options for part in parts))
        for section, path in zip(OPTION_SECTIONS, options, strict=True):
            if path:
                self.models[section] = _options_model(path)
        self.fields: dict[str, FieldInfo] = {}
        for section, model in self.models.items():
            for name, info in model.model_fields.items():
                if section or name not in (*SECTIONS, *OPTION_SECTIONS):
                    self.fields[f"{section}.{name}".lstrip(".")] = info

    def expand(self, key: str, origin: str) -> str:
        """Return the full path of `key`; UserError if it is unknown or ambiguous."""
        if key in self.fields:
            return key
        paths = [path for path in self.fields if path.rpartition(".")[2] == key]
        if len(paths) > 1:
            named = ", ".join(f"{path} ({self._owner(path)})" for path in paths)
            raise UserError(f"setting {key!r} ({origin}) is ambiguous", f"Use one of: {named}.")
        if not paths:
            raise UserError(f"unknown setting {key!r} ({origin})", self._guess(key))
        return paths[0]

    def _owner(self, path: str) -> str:
        """Return whose setting a full path is."""
        section = path.rpartition(".")[0]
        if section == "options" and self.backbone is not None:
            return f"backbone {self.backbone.name!r}"
        kind = section.removesuffix("_options")
        return f"{kind} {getattr(self.parts, kind).name!r}" if kind in Parts._fields else "core"

    def _guess(self, key: str) -> str:
        section, _, leaf = key.rpartition(".")
        for kind, own in self.parts._asdict().items():
            if section not in ("", f"{kind}_options"):
                continue
            others: Mapping[str, CombinerInfo | SchemeInfo | EstimatorInfo] = getattr(self.registry, f"{kind}s")
            able = [each.name for each in others.values() if each.options and leaf in _fields(each.options)]
            if able:
                owners = f"{kind} {able[0]!r}" if len(able) == 1 else f"{kind}s {', '.join(map(repr, able))}"
                reads = ", ".join(_fields(own.options)) if own.options else "none"
                return f"It is a setting of the {owners}; this run uses {own.name!r} (its settings: {reads})."
        names = {path.rpartition(".")[2]: path for path in self.fields} | {path: path for path in self.fields}
        close = [path for path in self.fields if path.endswith(f".{leaf}")]  # right name, wrong section
        close = close or list(dict.fromkeys(names[n] for n in difflib.get_close_matches(key, names, n=3, cutoff=0.6)))
        guess = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        return f"{guess}`meltr config schema{f' --backbone {self.backbone.name}' if self.backbone else ''}` lists them."


def _options_model(path: str) -> type[BaseModel]:
    model = load_object(path)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"options model {path!r} is not a pydantic model")
    return model


def _fields(path: str) -> Sequence[str]:
    """Return the names of the settings in an options model."""
    return list(_options_model(path).model_fields)


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for member in get_args(annotation) for each in alternatives(member)]
    return [annotation]

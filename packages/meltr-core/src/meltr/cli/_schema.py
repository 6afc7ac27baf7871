"""Describes every setting, from the models that define it: path, type, default, meaning."""

from __future__ import annotations

import inspect
import re
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from meltr.plugins import Registry
from meltr.setting_keys import Keys, Parts, alternatives
from meltr.settings import show


class SettingRow(NamedTuple):
    """One line of ``meltr config schema``."""

    path: str
    type: str
    default: str
    help: str


def describe_settings(
    registry: Registry,
    backbone: str | None = None,
    *,
    combiner: str | None = None,
    scheme: str | None = None,
    estimator: str | None = None,
) -> list[SettingRow]:
    """Return every setting with its type, default and meaning.

    Args:
        registry: The plugins found.
        backbone: Include the settings of this backbone (``options.*``).
        combiner: Include the settings of this combiner (``combiner_options.*``); None: ``meltr``.
        scheme: Include the settings of this scheme (``scheme_options.*``); None: the default one.
        estimator: Include the settings of this estimator (``estimator_options.*``); None: the default one.
    """
    info = registry.backbone(backbone) if backbone else None
    keys = Keys(registry, info, Parts.named(registry, combiner=combiner, scheme=scheme, estimator=estimator))
    names = {"bilevel.scheme": " | ".join(registry.schemes), "bilevel.estimator": " | ".join(registry.estimators)}
    rows = []
    for path, spec in keys.fields.items():
        default = "required" if spec.is_required() else show(spec.get_default(call_default_factory=True))
        kind = names.get(path) or _type_name(spec)
        rows.append(SettingRow(path, kind, default, _help(keys.models[path.rpartition(".")[0]], path)))
    return rows


def _help(model: type[BaseModel], path: str) -> str:
    """Return the description of a setting from the docstring of `model`, or of the class that it is inherited from."""
    name = path.rpartition(".")[2]
    entry = rf"^ +{re.escape(name)}: (.*?)(?=^ +\w+: |^ *$|\Z)"
    for kind in model.__mro__:
        match = re.search(entry, inspect.cleandoc(vars(kind).get("__doc__") or ""), re.M | re.S)
        if match:
            return " ".join(match.group(1).split())
    return ""


def _type_name(info: FieldInfo) -> str:
    """Return a field's type in words, with its limits."""
    names = []
    for kind in alternatives(info.annotation):
        arguments = [each for each in get_args(kind) if each is not Ellipsis]
        if get_origin(kind) is Literal:
            names += [str(each) for each in arguments]
        elif get_origin(kind) in (tuple, list):
            names.append(f"list of {getattr(arguments[0], '__name__', arguments[0])}" if arguments else "list")
        else:
            names.append("none" if kind is type(None) else getattr(kind, "__name__", str(kind)))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(each, name):g}"
        for each in info.metadata
        for name, sign in signs.items()
        if hasattr(each, name)
    ]
    return " | ".join(names) + (f" ({', '.join(limits)})" if limits else "")

"""Merges defaults, recipe, file, flags and ``--set`` into a complete, checked `RunSpec`. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from meltr.errors import UserError
from meltr.limits import SETTINGS_BYTES, UnreadableError, file_text, from_yaml
from meltr.loss_choice import choose, declared
from meltr.plugins import Registry
from meltr.recipes import check_identity, find_recipe, settings_for
from meltr.setting_keys import DEFAULTS, OPTION_SECTIONS, SECTIONS, Keys, Parts, alternatives
from meltr.specs import (
    BackboneInfo,
    CombinerInfo,
    RunSpec,
    TaskInfo,
)

FIDELITY: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"bilevel.outer_batch": "replay", "combiner_options.start": "random"},
}
"""Changes to defaults and presets by ``fidelity``; a backbone adds its own (`BackboneInfo.released`)."""

_SELECTION = ("backbone", "task", "dataset", "preset", "combiner", "fidelity")


class _Value(NamedTuple):
    value: Any
    origin: str


class _Layer(NamedTuple):
    """Settings of one source.

    Settings in the sections `loose` may belong to a backbone, combiner, scheme or estimator that is not in use; they
    are then ignored. All others must be valid.
    """

    values: dict[str, _Value]
    loose: Sequence[str] = ()


def _layer(values: Mapping[str, Any], origin: str, *, loose: Sequence[str] = OPTION_SECTIONS) -> _Layer:
    return _Layer({key: _Value(value, origin) for key, value in values.items()}, loose)


def resolve(
    registry: Registry,
    *,
    backbone: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
    preset: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> RunSpec:
    """Merge defaults < recipe < fidelity < combiner < config file < flags < ``--set`` and check the result.

    Args:
        registry: The plugins found.
        backbone: Name of the backbone; like `task`, `dataset` and `preset`, it may come from `config` instead.
        task: Name of the task.
        dataset: Name of the data set.
        preset: Name of a recipe, ``"none"``, or None for the backbone's default for this task and data set. A recipe
            in a file also says backbone, task and data set.
        config: YAML file, nested or dotted (such as a run.yaml), or its content.
        flags: Setting -> value; None values are skipped.
        sets: ``"setting=value"`` strings.
        plugins: Files given with ``--plugin``.

    Raises:
        UserError: If a setting is unknown, ambiguous, of the wrong type or in conflict with others.
        PluginError: If an options model cannot be loaded.
    """
    chosen = {"backbone": backbone, "task": task, "dataset": dataset, "preset": preset}
    flag_values = {key: value for each in (chosen, flags or {}) for key, value in each.items() if value is not None}
    layers = [
        _Layer(_read_config(config), loose=OPTION_SECTIONS),
        _layer(flag_values, "flags", loose=()),
        _Layer(dict(_split_set(text) for text in sets)),
    ]
    named = _pick("preset", layers)
    whole = find_recipe(registry, named)
    if whole is not None:
        layers.insert(0, _layer({kind: getattr(whole, kind) for kind in _SELECTION[:3]}, f"recipe {named}"))
    info, spec_task, spec_dataset = _select(registry, layers)
    if whole is not None:
        check_identity(whole, info.name, spec_task, spec_dataset)
    sample, released = _pick("sample", layers) in _TRUE, _pick("fidelity", layers) == "released"
    recipes = settings_for(info, spec_task, spec_dataset, recipe=whole, name=named, sample=sample, released=released)
    recipe_layers = [_layer(_flatten(settings), f"recipe {name}") for name, settings in recipes.items()]
    chosen_by = [*recipe_layers, *layers]
    combiner = registry.combiner(_pick("combiner", chosen_by) or DEFAULTS["combiner"])
    wanted = str(_pick("fidelity", chosen_by))
    fidelity = {**FIDELITY.get(wanted, {}), **(info.released if wanted == "released" else {})}
    if combiner.name != DEFAULTS["combiner"]:  # which these settings are for; a recipe may have chosen another
        fidelity = {key: value for key, value in fidelity.items() if not key.startswith("combiner_options.")}
    brought = _layer(combiner.settings, f"combiner {combiner.name}", loose=("scheme_options", "estimator_options"))
    layers = [*recipe_layers, _layer(fidelity, "fidelity"), brought, *layers]
    parts = Parts.named(
        registry, combiner=combiner.name, scheme=_pick("scheme", layers), estimator=_pick("estimator", layers)
    )
    keys = Keys(registry, info, parts)
    merged: dict[str, _Value] = {}
    for layer in _without_foreign_options(layers, info.name, parts):
        merged.update({keys.expand(key, item.origin): item for key, item in layer.values.items()})
    identity = {"backbone": info.name, "preset": next(reversed(recipes), None), "combiner": combiner.name}
    identity |= {"task": spec_task, "dataset": spec_dataset}
    merged.update({key: _Value(value, "flags") for key, value in identity.items()})
    if plugins:
        merged["plugins"] = _Value([str(file.expanduser().absolute()) for file in plugins], "--plugin")
    return _validated(registry, keys, merged, task=spec_task)


def load_spec(path: Path) -> RunSpec:
    """Read a run.yaml.

    Raises:
        UserError: If it is missing, not YAML, or does not describe a run.
    """
    content = read_yaml(path)
    try:
        return RunSpec.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UserError(f"{path} does not describe a run:\n{problems}", "Was it written by another version?") from error


def dump_yaml(spec: RunSpec) -> str:
    """Return `spec` as YAML that `load_spec` can read."""
    return str(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100))


def difference(a: RunSpec, b: RunSpec) -> list[str]:
    """Return the dotted settings in which two runs differ."""
    left, right = _flatten(a.model_dump(mode="json")), _flatten(b.model_dump(mode="json"))
    return [key for key in dict.fromkeys([*left, *right]) if left.get(key) != right.get(key)]


def _pick(key: str, layers: Sequence[_Layer]) -> str | None:
    """Return the value of a selection key, or of the same key of the outer loop, in the last layer that sets it.

    Within a layer the last value counts, as in the merge of layers.
    """
    for layer in reversed(layers):
        for name, item in reversed(layer.values.items()):
            if name in (key, f"bilevel.{key}") and item.value is not None:
                return str(item.value)
    return None


def _only_choice(kind: str, info: BackboneInfo, task: TaskInfo | None) -> str | None:
    """Return the task or data set that is missing, if the backbone has only one; None otherwise."""
    if kind == "task":
        names = {entry.task for entry in info.tasks}
    else:
        names = {name for entry in info.tasks if task and entry.task == task.name for name in entry.datasets}
    return names.pop() if len(names) == 1 else None


def _select(registry: Registry, layers: Sequence[_Layer]) -> tuple[BackboneInfo, str, str]:
    """Return backbone, task and data set of the run, checked to be compatible; the only choice may be unsaid."""
    chosen: dict[str, Any] = {}
    for kind in ("backbone", "task", "dataset"):
        value = _pick(kind, layers)
        if value is None and "backbone" in chosen:
            value = _only_choice(kind, chosen["backbone"], chosen.get("task"))
        if value is None:
            entries = chosen["backbone"].tasks if "backbone" in chosen else ()
            able = {"task": [e.task for e in entries], "dataset": [d for e in entries for d in e.datasets]}.get(kind)
            names = ", ".join(sorted(set(able or getattr(registry, f"{kind}s")))) or "none is installed"
            raise UserError(f"--{kind} is missing", f"Valid choices: {names}. `meltr list` shows the combinations.")
        chosen[kind] = getattr(registry, kind)(value)
        if kind == "task":
            _require_task(registry, chosen["backbone"], chosen["task"].name)
    info, task, dataset = chosen["backbone"], chosen["task"].name, chosen["dataset"].name
    tasks = {entry.task: entry for entry in info.tasks}
    if dataset not in tasks[task].datasets:
        hint = f"Valid choices: {', '.join(tasks[task].datasets)}."
        raise UserError(f"backbone {info.name!r} does not support data set {dataset!r} for task {task!r}", hint)
    return info, task, dataset


def _require_task(registry: Registry, info: BackboneInfo, task: str) -> None:
    """Raise UserError if a backbone does not support a task."""
    tasks = [entry.task for entry in info.tasks]
    if task not in tasks:
        able = [each.name for each in registry.backbones.values() if any(entry.task == task for entry in each.tasks)]
        hint = f"Its tasks: {', '.join(tasks)}. Backbones for {task!r}: {', '.join(able) or 'none'}."
        raise UserError(f"backbone {info.name!r} does not support task {task!r}", hint)


_TRUE = ("True", "true", "yes", "on", "1")


def _without_foreign_options(layers: Sequence[_Layer], backbone: str, parts: Parts) -> Iterable[_Layer]:
    """Drop settings of a preset or file for a backbone, combiner, scheme or estimator that is not in use."""
    current = dict(DEFAULTS)
    for layer in layers:
        foreign = set()
        for kind, own in parts._asdict().items():
            if f"{kind}_options" in layer.loose:
                current[kind] = _pick(kind, [layer]) or current[kind]
                if current[kind] != own.name:
                    foreign.add(f"{kind}_options")
        if "options" in layer.loose and (_pick("backbone", [layer]) or backbone) != backbone:
            foreign.add("options")
        yield layer._replace(values={k: v for k, v in layer.values.items() if k.partition(".")[0] not in foreign})


def _validated(registry: Registry, keys: Keys, merged: Mapping[str, _Value], *, task: str) -> RunSpec:
    """Build the RunSpec from full paths; all findings of pydantic become one UserError."""
    nested: dict[str, Any] = {section: {} for section in (*SECTIONS, *OPTION_SECTIONS)}
    for path, item in merged.items():
        section, _, name = path.rpartition(".")
        (nested[section] if section else nested)[name] = _parse(item.value, keys.fields[path], path, item.origin)
    assert keys.backbone is not None
    wanted, primary, entry = nested.get("losses"), nested.get("primary"), keys.backbone.task(task)
    late = entry.losses_of is not None  # Its losses depend on settings, which are checked first.
    nested["losses"] = entry.losses if late else choose(keys.backbone, task, entry.losses, wanted, primary)
    problems: list[str] = []
    for section in OPTION_SECTIONS:
        if section in keys.models:
            try:
                nested[section] = keys.models[section].model_validate(nested[section]).model_dump(mode="json")
            except ValidationError as error:
                problems += _explain(error, merged, section)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(nested.get("device", "auto"))):
        problems.append(f"  device = {nested['device']}: Input should be auto, cpu, cuda, cuda:0, cuda:1, ... or mps")
    if nested.get("data_root"):
        nested["data_root"] = Path(nested["data_root"]).expanduser().absolute()
    try:
        spec = RunSpec.model_validate(nested)
    except ValidationError as error:
        problems += _explain(error, merged, "")
    if problems:
        hint = f"`{_schema_command(keys)}` lists them all."
        noun = "this setting is" if len(problems) == 1 else "these settings are"
        raise UserError("\n".join([f"{noun} not valid:", *problems]), hint)
    if late:
        options = keys.models["options"].model_validate(spec.options) if "options" in keys.models else None
        losses = choose(keys.backbone, task, declared(keys.backbone, spec, options), wanted, primary)
        spec = spec.model_copy(update={"losses": losses})
    _check_combiner(spec, keys.parts.combiner)
    return spec


def _schema_command(keys: Keys) -> str:
    """Return the command that lists the settings of a run."""
    named = {"backbone": keys.backbone, "combiner": keys.parts.combiner}
    named |= {kind: own for kind, own in keys.parts._asdict().items() if own.name != DEFAULTS[kind]}
    return " ".join(["meltr config schema", *(f"--{kind} {own.name}" for kind, own in named.items() if own)])


def _explain(error: ValidationError, merged: Mapping[str, _Value], section: str) -> list[str]:
    lines = []
    for each in error.errors():
        path = ".".join(str(part) for part in ([section] if section else []) + list(each["loc"]))
        known = next((key for key in (path, path.rpartition(".")[0]) if key in merged), None)
        found = f" = {show(merged[known].value)} ({merged[known].origin})" if known else ""
        message = "is required, but nothing sets it" if each["type"] == "missing" else each["msg"]
        lines.append(f"  {known or path}{found}: {message.removeprefix('Value error, ')}")
    return lines


def _check_combiner(spec: RunSpec, combiner: CombinerInfo) -> None:
    """Reject a combiner that does not support the losses in use."""
    losses = ", ".join(spec.losses)
    if combiner.learned and len(spec.losses) < 2:
        message = f"combiner {combiner.name!r} learns how to combine losses, but there is only one: {losses}"
        raise UserError(message, "Use --combiner primary, or add losses with --set losses=...")
    weights = spec.combiner_options.get("weights") if combiner.name == "fixed" else None
    if weights is not None and len(weights) != len(spec.losses):
        message = f"combiner 'fixed' got {len(weights)} weights for {len(spec.losses)} losses"
        raise UserError(message, f"Give one weight for each of: {losses}.")


def _split_set(text: str) -> tuple[str, _Value]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text!r} is not of the form setting=value", "For example: --set train.lr=0.01")
    return key.strip(), _Value(value.strip(), "--set")


def _flatten(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Turn nested sections into dotted settings; a mapping that is itself a value is kept."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key in (*SECTIONS, *OPTION_SECTIONS) and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": each for name, each in value.items()})
        else:
            flat[str(key)] = value
    return flat


def _read_config(config: Path | Mapping[str, Any] | None) -> dict[str, _Value]:
    content = read_yaml(config) if isinstance(config, Path) else dict(config or {})
    origin = config.name if isinstance(config, Path) else "config"
    sections = (*SECTIONS, *OPTION_SECTIONS)
    for name in sections:
        if not isinstance(content.get(name) or {}, Mapping):
            raise UserError(f"{origin}: {name!r} must hold settings, but is {content[name]!r}")
    return {key: _Value(value, origin) for key, value in _flatten(content).items() if key not in sections}


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the mapping in a YAML file; UserError if it cannot be read or holds anything else."""
    try:
        content = from_yaml(file_text(path, most=SETTINGS_BYTES), path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold settings (key: value), but holds {type(content).__name__}")
    return content


def _parse(value: Any, info: FieldInfo, path: str, origin: str) -> Any:
    """Convert what the user typed to what the field accepts; anything but a string is kept."""
    kinds = alternatives(info.annotation)
    listing = any(get_origin(kind) in (tuple, list, set, frozenset) for kind in kinds)
    if isinstance(value, str):
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        if value.lower() in ("none", "null", "~") and type(None) in kinds and value not in words:
            return None
        if value in words or not (listing or _reads_yaml(kinds)):
            return value
        value = _from_yaml(value, path, origin)
    if listing and value is None and type(None) not in kinds:
        return []
    if listing and isinstance(value, str):
        return [_number(part.strip()) for part in value.split(",") if part.strip()]
    return [value] if listing and isinstance(value, (int, float)) else value


def _reads_yaml(kinds: Sequence[Any]) -> bool:
    """Tell whether a typed value is parsed as YAML; text and paths are not parsed."""
    return not all(kind in (str, Path, type(None)) or get_origin(kind) is Literal for kind in kinds)


def _from_yaml(text: str, path: str, origin: str) -> Any:
    try:
        value = from_yaml(text, path)
    except UnreadableError as error:
        raise UserError(f"{path} = {text!r:.200} ({origin}) is not a valid value: {error.problem}") from error
    return _number(value) if isinstance(value, str) else value


def _number(text: str) -> Any:
    """Return values such as 3e-5, which YAML reads as text, as numbers."""
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) else text


def show(value: Any) -> str:
    """Return a value as a user would write it."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(show(each) for each in value) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

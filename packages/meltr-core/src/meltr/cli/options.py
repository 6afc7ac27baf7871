"""The options that select a run, shared by ``meltr run`` and ``meltr config show``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from meltr.errors import UserError
from meltr.plugins import Registry, discover
from meltr.settings import read_yaml, resolve
from meltr.specs import RunSpec

_RUN = "What to run"
_SETTINGS = "Settings"
_DATA = "Data and device"


def _names(kind: str) -> Callable[[str], list[str]]:
    """Return the shell completion for the names of one kind."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in sorted(getattr(discover(), kind)) if name.startswith(incomplete)]

    return complete


Backbone = Annotated[
    str | None,
    typer.Option(help="Backbone; meltr list shows them.", autocompletion=_names("backbones"), rich_help_panel=_RUN),
]
Task = Annotated[str | None, typer.Option(help="Task.", autocompletion=_names("tasks"), rich_help_panel=_RUN)]
Dataset = Annotated[str | None, typer.Option(help="Data set.", autocompletion=_names("datasets"), rich_help_panel=_RUN)]
Combiner = Annotated[
    str | None,
    typer.Option(
        help="How the losses are combined; default: meltr.", autocompletion=_names("combiners"), rich_help_panel=_RUN
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "--preset",
        help="Recipe, such as table3/msvd; 'none': no recipe; default: the backbone's for task and data set.",
        rich_help_panel=_RUN,
    ),
]
Plugin = Annotated[
    list[Path] | None, typer.Option(help="Python file with a plugin; may be repeated.", rich_help_panel=_RUN)
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load the plugin files that run.yaml names, which runs their code.")
]
Config = Annotated[
    Path | None, typer.Option(help="YAML file with settings, such as a run.yaml.", rich_help_panel=_SETTINGS)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SETTING=VALUE",
        help="Any setting, such as train.lr=0.01 or just lr=0.01; may be repeated. See meltr config schema.",
        rich_help_panel=_SETTINGS,
    ),
]
Fidelity = Annotated[
    str | None,
    typer.Option(help="'paper' or 'released': follow the paper or its code.", rich_help_panel=_SETTINGS),
]
Seed = Annotated[str | None, typer.Option(help="Seed, or several: 0,1,2.", rich_help_panel=_SETTINGS)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training split.", rich_help_panel=_SETTINGS)]
BatchSize = Annotated[int | None, typer.Option(help="Examples per step.", rich_help_panel=_SETTINGS)]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate of the backbone.", rich_help_panel=_SETTINGS)]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set.", rich_help_panel=_DATA)]
Download = Annotated[bool, typer.Option("--download", help="Download missing data files.", rich_help_panel=_DATA)]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing", help="Skip examples whose video or image is missing or broken.", rich_help_panel=_DATA
    ),
]
Sample = Annotated[bool, typer.Option("--sample", help="Use a small synthetic sample instead.", rich_help_panel=_DATA)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0, mps.", rich_help_panel=_DATA)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@dataclass(frozen=True)
class Selection:
    """The user's options, unchecked; None or empty if an option was not given."""

    backbone: str | None = None
    task: str | None = None
    dataset: str | None = None
    combiner: str | None = None
    preset: str | None = None
    plugin: Sequence[Path] = ()
    config: Path | None = None
    sets: Sequence[str] = ()
    fidelity: str | None = None
    seed: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    data_root: Path | None = None
    download: bool = False
    allow_missing: bool = False
    sample: bool = False
    device: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Selection:
        """Take the relevant options from a command's; a list that was not given becomes empty."""
        given = {field.name: options[field.name] for field in fields(cls)}
        return cls(**{**given, "plugin": given["plugin"] or (), "sets": given["sets"] or ()})

    def seeds(self) -> list[int] | None:
        """Return the seeds, or None if ``--seed`` was not given; UserError if they are not numbers."""
        if self.seed is None:
            return None
        words = [word.strip() for word in self.seed.split(",")]
        if not all(word.isdecimal() for word in words):
            raise UserError(f"--seed {self.seed!r} is not a list of numbers", "For example: --seed 0,1,2")
        seeds = [int(word) for word in words]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"--seed {self.seed!r} names a seed twice", "For example: --seed 0,1,2")
        return seeds

    def flags(self) -> dict[str, Any]:
        """Return the settings that have their own option; None if it was not given."""
        seeds = self.seeds()
        return {
            "backbone": self.backbone,
            "task": self.task,
            "dataset": self.dataset,
            "preset": self.preset,
            "combiner": self.combiner,
            "fidelity": self.fidelity,
            "seed": seeds[0] if seeds else None,
            "device": self.device,
            "data_root": str(self.data_root) if self.data_root else None,
            "sample": self.sample or None,
            "data.download": self.download or None,
            "data.allow_missing": self.allow_missing or None,
            "train.epochs": self.epochs,
            "train.batch_size": self.batch_size,
            "train.lr": self.lr,
        }

    def plugin_files(self) -> list[Path]:
        """Return the files given with ``--plugin``, or else those in the config file."""
        if self.plugin or self.config is None:
            return list(self.plugin)
        return [Path(each) for each in read_yaml(self.config).get("plugins") or ()]

    def resolve(self, registry: Registry) -> RunSpec:
        """Return the checked description of the run; UserError if it is not valid."""
        files = self.plugin_files()
        return resolve(registry, config=self.config, flags=self.flags(), sets=self.sets, plugins=files)


def plugins_of_run(run: Path, stored: Sequence[Path | str], given: Sequence[Path] | None, *, trust: bool) -> list[Path]:
    """Return the plugin files to load for a run folder, which may come from somebody else.

    Args:
        run: The folder.
        stored: The files that its run.yaml names.
        given: The files given with ``--plugin``.
        trust: ``--trust`` was given.

    Raises:
        UserError: If run.yaml names files, and neither option was given: loading a plugin runs its code.
    """
    if given or not stored or trust:
        return [Path(each) for each in given or stored]
    files = ", ".join(map(str, stored))
    raise UserError(
        f"{run / 'run.yaml'} names the plugin file {files}, and loading it would run its code.",
        f"If you trust that file, add --trust, or name it yourself: --plugin {stored[0]}",
    )


def registry_for(ctx: typer.Context, files: Sequence[Path] = ()) -> Registry:
    """Return the installed plugins and those in `files`."""
    registry: Registry = discover(files) if files else ctx.obj.registry
    return registry

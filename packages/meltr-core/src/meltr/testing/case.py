"""What an author configures, and what the tests of one class share: the run, its model and batches, a trained run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from meltr.context import PredictRequest
from meltr.devices import resolve_device
from meltr.engine.run import execute
from meltr.hookspecs import hookimpl
from meltr.plugins import Registry, discover
from meltr.seeding import seed_everything
from meltr.settings import resolve
from meltr.specs import RunSpec
from meltr.verify.fixed_run import FixedRun

DEVICE = "MELTR_TEST_DEVICE"
"""Environment variable with the device of the tests: ``cpu`` (the default), ``cuda``, ``cuda:1`` or ``mps``."""

STEPS, CUT = 5, 3
"""Training steps of the trained run, and the step after which an interrupted one ends; an outer step follows each."""

SMALL: Mapping[str, Any] = {
    "combiner": "meltr",
    "combiner_options.width": 16,
    "combiner_options.heads": 2,
    "train.schedule": "constant",
    "train.warmup": 0,
    "train.epochs": 100,
    "train.max_steps": STEPS,
    "train.eval_every": 100,
    "train.checkpoint_every": CUT,
    "train.keep_checkpoints": 1,
    "train.log_every": 1,
    "bilevel.every": 2,
    "bilevel.outer_lr": 1e-2,
}
"""Settings of every test, unless `Case.settings` has others: a small combiner and a few steps."""


class Case:
    """The configuration of a test class. All fields are class attributes.

    Args:
        backbone: Name of the backbone.
        task: Name of the task; None: the only one.
        dataset: Name of the data set; None: the only one.
        settings: Dotted setting -> value, as for ``--set``. Choose the smallest model and few examples: a class should
            take seconds. All losses that the backbone declares for the task are used, unless ``losses`` is among them.
        plugins: Files of plugins, as for ``--plugin``; an installed plugin needs none.
        quiet: Settings that switch random draws off (dropout, augmentation), for the test with two processes.
        expected_failures: Name of a test -> why this backbone cannot pass it. Such a test must fail.
    """

    backbone: ClassVar[str]
    task: ClassVar[str | None] = None
    dataset: ClassVar[str | None] = None
    settings: ClassVar[Mapping[str, Any]] = {}
    plugins: ClassVar[Sequence[Path | str]] = ()
    quiet: ClassVar[Mapping[str, Any]] = {}
    expected_failures: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def requests(cls, spec: RunSpec) -> Sequence[PredictRequest]:
        """Return requests that a trained run can answer. Override it if the backbone has the hook `predict`."""
        return ()

    @classmethod
    def files(cls) -> list[Path]:
        """Return the files of plugins, as absolute paths."""
        return [Path(file).absolute() for file in cls.plugins]

    @classmethod
    def make_spec(cls, registry: Registry, **others: Any) -> RunSpec:
        """Return the description of the run.

        Args:
            registry: The plugins found.
            others: Further settings, with ``__`` in place of the dot.
        """
        info = registry.backbone(cls.backbone)
        task = cls.task or info.tasks[0].task
        entry = info.task(task)
        losses = None if entry.losses_of else list(entry.losses)
        flags = {"device": os.environ.get(DEVICE, "cpu"), "losses": losses, **SMALL, **cls.settings}
        flags |= {name.replace("__", "."): value for name, value in others.items()}
        return resolve(
            registry,
            backbone=cls.backbone,
            task=task,
            dataset=cls.dataset or entry.datasets[0],
            preset=flags.pop("preset", "none"),
            flags=flags,
            plugins=cls.files(),
        )

    @pytest.fixture(autouse=True)
    def _expected(self, request: pytest.FixtureRequest) -> None:
        """Mark the test as an expected failure if `expected_failures` names it."""
        unknown = [name for name in self.expected_failures if not hasattr(self, name)]
        assert not unknown, f"expected_failures names {unknown}; there are no such tests"
        reason = self.expected_failures.get(request.node.originalname)
        if reason is not None:
            assert reason.strip(), "expected_failures must give a reason for every test"
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture(autouse=True)
    def _device(self) -> None:
        """Let small models use one thread, and skip the test if its device is not here."""
        torch.set_num_threads(1)
        name = os.environ.get(DEVICE, "cpu")
        if name.startswith("cuda") and not torch.cuda.is_available():
            pytest.fail(f"{DEVICE}={name}, but there is no CUDA device here")

    @pytest.fixture(scope="class")
    @classmethod
    def registry(cls) -> Registry:
        """Return the plugins found."""
        return discover(cls.files())

    @pytest.fixture(scope="class")
    @classmethod
    def spec(cls, registry: Registry) -> RunSpec:
        """Return the description of the run."""
        return cls.make_spec(registry)

    @pytest.fixture(scope="class")
    @classmethod
    def fixed(cls, spec: RunSpec, registry: Registry) -> FixedRun:
        """Return the model at its first outer step, with fixed batches, hooks and context."""
        torch.set_num_threads(1)
        return FixedRun(spec, registry)

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, spec: RunSpec, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> TrainedFolder:
        """Return a run of `STEPS` steps that was not interrupted."""
        torch.set_num_threads(1)
        folder = tmp_path_factory.mktemp("conformance") / "whole"
        watch = Watch()
        seed_everything(1)
        results = execute(spec, run_dir=folder, registry=registry, observers=[watch])
        return TrainedFolder(folder, results, watch)

    @staticmethod
    def on_cpu(spec: RunSpec) -> bool:
        """Tell whether results must be equal in every bit: only there are all operations deterministic."""
        return resolve_device(spec.device).type == "cpu"


class Watch:
    """An observer that keeps what a run says, and what `evaluate` returned by split."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.evaluations: dict[str, Any] = {}

    @hookimpl
    def on_message(self, message: str) -> None:
        """Keep a message."""
        self.messages.append(message)

    @hookimpl
    def on_evaluation(self, split: str, evaluation: Any) -> None:
        """Keep an evaluation."""
        self.evaluations[split] = evaluation


class TrainedFolder:
    """A trained run.

    Args:
        path: Its folder.
        results: The content of ``results.json``.
        watch: What was observed.
    """

    def __init__(self, path: Path, results: Mapping[str, Any], watch: Watch) -> None:
        self.path, self.results, self.watch = path, results, watch

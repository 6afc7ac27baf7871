"""Two processes that share a batch find the losses, gradients and metrics of one process with the whole batch."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from meltr.engine.batches import batch_at, fingerprint, to_device
from meltr.engine.built_run import open_run, without_losses
from meltr.parallel.ranks import Ranks, joined
from meltr.plugins import Registry, discover, load_object
from meltr.seeding import derive, seed_everything
from meltr.specs import RunSpec
from meltr.testing.case import Case
from meltr.torch_private import map_tensors

TOLERANCE = 1e-4
"""Relative difference of a loss, and of its gradient, between one process and two: sums in another order."""

TIMEOUT = 300.0
"""Seconds until two processes that do not end are killed."""

PRELOADED = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "meltr.parallel.sharded",
    "meltr.bilevel.bilevel",
    "meltr.testing",
)
"""Modules that are imported once, in the process that is forked. It lives as long as pytest."""

Found = dict[str, tuple[float, Tensor]]
"""Name of a loss -> its value, and its gradient with respect to all parameters, flat."""


@dataclass(frozen=True)
class Examined:
    """What the processes of a run find together.

    Args:
        losses: The losses on the first training batch.
        metrics: Those of the validation split, or of the test split if there is no other; empty if not asked for.
    """

    losses: Found
    metrics: dict[str, float]


@dataclass(frozen=True)
class Work:
    """What two processes do.

    Args:
        spec: The run.
        files: Files of plugins.
        names: The losses.
        double: In float64.
        port: Of the store, on this machine.
        folder: Where they write.
        environment: That of the test; the process that is forked may have been started under another one.
    """

    spec: RunSpec
    files: tuple[Path, ...]
    names: tuple[str, ...]
    double: bool
    port: int
    folder: str
    environment: dict[str, str]


class Processes(Case):
    """Data parallelism over gloo, on the CPU."""

    def test_two_processes_agree_with_one(self, registry: Registry) -> None:
        """For every loss that draws no random number in eval mode: values and gradients, averaged over the processes.

        A loss that compares the examples of a batch must gather them (`meltr.parallel.gather`), and each process must
        read its own part of the batch. At least one loss must be comparable: `quiet` switches draws off. The metrics of
        a split are those of one process, whether the processes share the split or not.
        """
        quiet = {key.replace(".", "__"): value for key, value in self.quiet.items()}
        spec = self.make_spec(registry, **{"device": "cpu", **quiet})
        alone = Ranks.single(torch.device("cpu"))
        double = _works_in_float64(spec, registry, alone)
        whole = examine(spec, registry, alone, seed=1, double=double, evaluate=True)
        first, second = whole.losses, examine(spec, registry, alone, seed=2, double=double).losses
        drawn = [name for name in first if first[name][0] != second[name][0]]
        names = [name for name in first if name not in drawn]
        assert names, f"every loss draws random numbers ({drawn}); switch that off by the settings in quiet"
        together = _in_two_processes(spec, self.files(), names, double=double)
        for name in names:
            (value, gradient), (found, other) = first[name], together.losses[name]
            assert abs(found - value) <= TOLERANCE * max(abs(value), 1e-6), (
                f"loss {name!r} is {value} in one process and {found} in two; does it need the examples of the other "
                "process (meltr.parallel.gather), or is it no mean over examples?"
            )
            error = float((other - gradient).norm() / gradient.norm().clamp_min(1e-12))
            assert error <= TOLERANCE, f"the gradient of loss {name!r} in two processes is off by {error:.1e}"
        assert together.metrics.keys() == whole.metrics.keys()
        for name, value in whole.metrics.items():
            found = together.metrics[name]
            assert math.isclose(found, value, rel_tol=TOLERANCE, abs_tol=1e-6), (
                f"metric {name!r} is {value} in one process and {found} in two; are the results of all joined "
                "in order (meltr.parallel.gather.gather_in_turn)?"
            )


def examine(
    spec: RunSpec,
    registry: Registry,
    ranks: Ranks,
    *,
    seed: int,
    double: bool,
    names: Sequence[str] | None = None,
    evaluate: bool = False,
) -> Examined:
    """Return losses and gradients on the first training batch, averaged over the processes, in eval mode, and metrics.

    Args:
        spec: The run.
        registry: The plugins found.
        ranks: The processes.
        seed: Of the random numbers that losses may draw.
        double: In float64, where sums in another order are the same to more digits.
        names: The losses; None: all.
        evaluate: Evaluate a split, too.
    """
    hooks, context = open_run(spec, registry, run_dir=None, ranks=ranks)
    seed_everything(derive(spec.seed, "data"), context.generator)
    data = hooks.build_data(context)
    context = without_losses(data.left_out, context)
    seed_everything(derive(spec.seed, "model"), context.generator)
    model = hooks.build_model(context, data).eval()
    split = data.test if data.validation is None else data.validation
    metrics = dict(hooks.evaluate(model, split, context).metrics) if evaluate and split is not None else {}
    batch = to_device(batch_at(data.train, 0, 0), ranks.device)
    if ranks.size > 1:
        hooks.check_parts(ranks.gather_objects(fingerprint(batch)))
    if double:
        model, batch = model.double(), map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    parameters = [each for each in model.parameters() if each.requires_grad]
    found: Found = {}
    for name in names or context.losses:
        seed_everything(seed, context.generator)
        loss = hooks.losses(model, batch, context.with_losses(name))[name]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = [
            torch.zeros_like(each) if grad is None else grad for grad, each in zip(gradients, parameters, strict=True)
        ]
        flat = torch.cat([each.detach().flatten().double() for each in whole])
        found[name] = float(ranks.mean(loss.detach().double())), ranks.mean(flat)
    return Examined(found, metrics)


def _works_in_float64(spec: RunSpec, registry: Registry, ranks: Ranks) -> bool:
    """Tell whether all losses can be computed in float64."""
    try:
        examine(spec, registry, ranks, seed=1, double=True)
    except RuntimeError:
        return False
    return True


def _in_two_processes(spec: RunSpec, files: Sequence[Path], names: Sequence[str], *, double: bool) -> Examined:
    """Call `examine` in two processes that share the batch; return what the first one found."""
    kinds: Any = dist
    store = kinds.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="meltr-ranks-") as folder:
        work = Work(spec, tuple(files), tuple(names), double, store.port, folder, dict(os.environ))
        launcher = _clean_processes().Process(target=_launch, args=(work,))
        launcher.start()
        launcher.join(TIMEOUT)
        launcher.kill()
        launcher.join()
        texts = [Path(folder, f"{rank}.txt") for rank in range(2)]
        said = "\n".join(file.read_text(encoding="utf-8")[-3000:] for file in texts if file.exists())
        assert launcher.exitcode == 0, f"the two processes failed:\n{said}"
        return Examined(**torch.load(Path(folder, "0.pt"), weights_only=True))


def _clean_processes() -> Any:
    """Return how processes without threads are started: as forks of one that has imported torch, if the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _launch(work: Work) -> None:
    """Import the adapter once, then start both processes; end with 1 if one of them fails."""
    os.environ.clear()
    os.environ.update(work.environment)
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    torch.set_num_threads(1)
    load_object(discover(work.files).backbone(work.spec.backbone).adapter)
    children = [multiprocessing.get_context(kind).Process(target=_process, args=(rank, work)) for rank in range(2)]  # type: ignore[attr-defined]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(int(any(child.exitcode != 0 for child in children)))


def _environment(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "OMP_NUM_THREADS": "1",
    }


def _process(rank: int, work: Work) -> None:
    """Evaluate the part of one process; write what it found, and what it printed, into the folder."""
    os.environ.update(work.environment | _environment(rank, work.port))
    with (
        Path(work.folder, f"{rank}.txt").open("w", encoding="utf-8") as out,
        redirect_stdout(out),
        redirect_stderr(out),
    ):
        try:
            with joined("cpu", timeout=TIMEOUT / 2) as ranks:
                registry = discover(work.files)
                found = examine(work.spec, registry, ranks, seed=1, double=work.double, names=work.names, evaluate=True)
            torch.save({"losses": found.losses, "metrics": found.metrics}, Path(work.folder, f"{rank}.pt"))
        except BaseException:
            traceback.print_exc()
            sys.exit(1)

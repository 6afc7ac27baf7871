"""``meltr doctor``: checks whether everything that a run needs is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from meltr.cli.options import AsJson, registry_for
from meltr.cli.output import print_json, table
from meltr.plugins import Registry
from meltr.version import __version__

OK, WARN, FAIL = "OK", "WARN", "FAIL"
MINIMUM_TORCH = (2, 11)
EXTRAS = (
    ("matplotlib", "matplotlib", "plots", "no meltr plot"),
    ("tensorboard", "tensorboard", "tensorboard", "no TensorBoard"),
    ("av", "av", "video", "no videos can be read or written (PyAV)"),
    ("pillow", "PIL", "video", "no images can be read, and no frame cache"),
    ("transformers", "transformers", "text", "no texts can be read"),
    ("pycocoevalcap", "pycocoevalcap", "captions", "no captions can be scored"),
    ("sacrebleu", "sacrebleu", "generation", "no text-to-text can be scored"),
    ("optuna", "optuna", "search", "no search by meltr sweep"),
)
"""Package, its module, the extra that installs it, and what does not work without it: what runs use.

Extras for other loops (accelerate, lightning, transformers), combiners (torchjd), trackers, the Hub, folders of
datasets and the tests of plugin authors are not among them: their own messages say what to install.
"""

DISTRIBUTION = "meltr-core"
"""The package of this command."""

_GIB = 2**30


class Check(NamedTuple):
    """The result of one check.

    Args:
        name: What was checked.
        status: OK, WARN (something optional is missing) or FAIL (runs will not work).
        found: The finding.
        fix: What to do about it; empty if nothing is wrong.
    """

    name: str
    status: str
    found: str
    fix: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(doctor)


def doctor(
    ctx: typer.Context,
    *,
    data_root: Annotated[Path | None, typer.Option(help="Folder of a data set to check as well.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Parent folder of runs.")] = Path("runs"),
    plugin: Annotated[list[Path] | None, typer.Option(help="Python file with a plugin; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation: what works, what does not, and what to do about it."""
    checks = [
        Check("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("meltr", OK, __version__),
        *_namesakes(),
        *_torch(),
        *_plugins(registry_for(ctx, plugin or ())),
        *_extras(),
        *_disk(output_dir),
        *(_data(data_root) if data_root else ()),
    ]
    failed = any(check.status == FAIL for check in checks)
    if as_json:
        print_json({"ok": not failed, "checks": [check._asdict() for check in checks]})
    else:
        typer.echo("```\n" + table([[check.status, check.name, check.found] for check in checks], indent="") + "\n```")
        fixes = [[check.status, check.name, check.fix] for check in checks if check.fix]
        if fixes:
            typer.echo("What to do:\n" + table(fixes))
        typer.echo("Paste the block above into a bug report." if failed else "Runs should work.")
    if failed:
        raise typer.Exit(1)


def _namesakes() -> Iterator[Check]:
    """Look for other packages with a module or a command ``meltr``; there is an unrelated one of that name."""
    metadata = importlib.metadata
    found = {_normal(name) for name in metadata.packages_distributions().get("meltr", ())}
    scripts = [each for each in metadata.entry_points(group="console_scripts") if each.name == "meltr"]
    found |= {_normal(script.dist.name) for script in scripts if script.dist is not None}
    found |= {_normal(each.name) for each in metadata.distributions(name="meltr")}
    for name in sorted(found - {DISTRIBUTION}):
        yield Check(
            "namesake",
            FAIL,
            f"{name} {metadata.version(name)}, another project, also installs a module or a command meltr",
            f"pip uninstall {name}, then: pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _torch() -> Iterator[Check]:
    try:
        import torch
        import torch.distributed as distributed
    except Exception as error:
        yield Check("torch", FAIL, f"cannot be imported: {error}", "Reinstall it: pip install 'torch>=2.11'")
        return
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    old = version < MINIMUM_TORCH
    yield Check("torch", FAIL if old else OK, found, "Upgrade it: pip install -U 'torch>=2.11'" if old else "")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Check("cuda", OK, f"{torch.version.cuda}: {names}")
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Check("bf16", OK if bf16 else WARN, "yes" if bf16 else "no", "" if bf16 else "Stay with precision=fp32.")
    elif torch.version.cuda and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        fix = "Check with nvidia-smi that the driver works and is new enough for this torch."
        yield Check("cuda", WARN, f"torch was built for CUDA {torch.version.cuda}, but finds no device", fix)
    else:
        yield Check("cuda", OK, "no device; runs use the CPU")
    mps = torch.backends.mps.is_available()
    yield Check("mps", OK, "yes (--device mps)" if mps else "no")
    backends = [name for name in ("nccl", "gloo") if getattr(distributed, f"is_{name}_available", lambda: False)()]
    several = torch.cuda.device_count() > 1 and "nccl" not in backends
    fix = "To train on several GPUs, install a torch that was built with NCCL." if several else ""
    yield Check("distributed", WARN if several else OK, ", ".join(backends) or "none", fix)


def _plugins(registry: Registry) -> Iterator[Check]:
    names = sorted(registry.backbones)
    if names:
        yield Check("backbones", OK, ", ".join(names))
    else:
        yield Check("backbones", WARN, "none", "Install an adapter package, or load a file with --plugin FILE.")
    for plugin in registry.broken:
        fix = f"Update or uninstall it: {plugin.source}"
        yield Check(f"plugin {plugin.name}", FAIL, f"{plugin.source} is broken: {plugin.cause}", fix)


def _extras() -> Iterator[Check]:
    for package, module, extra, without in EXTRAS:
        if importlib.util.find_spec(module):
            yield Check(package, OK, importlib.metadata.version(package))
        else:
            yield Check(package, WARN, f"missing: {without}", f"pip install 'meltr-core[{extra}]'")
    java = shutil.which("java")
    yield Check(
        "java",
        OK if java else WARN,
        "found" if java else "missing: METEOR is skipped, no PTB tokens",
        "" if java else "Install Java.",
    )


def _disk(output_dir: Path) -> Iterator[Check]:
    there = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / _GIB
    status = FAIL if free < 0.5 else WARN if free < 5 else OK
    fix = "" if status == OK else "Free some space, or choose another folder with --output-dir."
    yield Check("disk", status, f"{free:.1f} GiB free for {output_dir}", fix)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        fix = "Choose another folder with --output-dir."
        yield Check("output folder", FAIL, f"{output_dir} cannot be written: {error.strerror}", fix)
    else:
        yield Check("output folder", OK, f"{output_dir} can be written")


def _data(root: Path) -> Iterator[Check]:
    if not root.is_dir():
        yield Check("data", FAIL, f"{root} is not a folder", "Give the folder of the data set with --data-root.")
    elif not os.access(root, os.R_OK | os.X_OK):
        yield Check("data", FAIL, f"{root} cannot be read", "Check its permissions.")
    elif not any(root.iterdir()):
        yield Check("data", WARN, f"{root} is empty", "Put the data set there, or add --download to meltr run.")
    else:
        yield Check("data", OK, str(root))

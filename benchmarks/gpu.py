"""Everything that wants a GPU, within a limit of time: what training costs there, then the tests marked so.

    python benchmarks/gpu.py --quick                  # 4 minutes
    python benchmarks/gpu.py --full --out results     # 10 minutes
    python benchmarks/gpu.py --quick --device cpu     # a rehearsal on small cases

The parts run one after another, the most important first, each in a process of its own with its own limit. Rows and
tests are printed as they are ready, and written below ``--out`` at once, so whatever ends the run, what was measured is
there. A part that ends early leaves its time to the others; one that hangs is ended. The packages need not be
installed: their sources beside this file are used, with the dependencies of meltr-core (``--missing`` names those that
are not there, and measures nothing).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
MARGIN = 10.0
"""Seconds that are kept for the end."""

GRACE = 5.0
"""Seconds between asking a part to end and ending it."""

IMPORTED = {"pyyaml": "yaml"}
"""Names of packages that differ from those of their modules."""


@dataclass(frozen=True)
class Part:
    """One thing to run.

    Args:
        name: Shown above its output.
        command: After the name of the Python interpreter.
        share: Of the whole time, at most; what earlier parts left is added.
    """

    name: str
    command: tuple[str, ...]
    share: float


def parts(*, full: bool, device: str, out: Path) -> list[Part]:
    """Return what to run, most important first; on a CPU small cases in float32."""
    rehearsal = device == "cpu"

    def card(case: str, batch: int, share: float, *more: str) -> Part:
        small = {"transformer-base": "transformer-small", "violet-base": "violet-tiny", "resnet32": "resnet20"}
        chosen = small[case] if rehearsal else case
        words = ["benchmarks/card.py", "--device", device, "--case", chosen, "--out", str(out / f"{chosen}.json")]
        words += ["--precision", "fp32", "--turns", "1"] if rehearsal else ["--batch-size", str(batch)]
        return Part(chosen, (*words, *more), share)

    tests = ["-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "-p", "report_now"]
    tests += ["-x"] if rehearsal else ["-n", "8"] if importlib.util.find_spec("xdist") else []
    core = Part("tests of core", (*tests, "packages/meltr-core/tests/test_gpu.py"), 1.0)
    if not full:
        return [card("transformer-base", 64, 0.6), core]
    adapters = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("packages/*/tests/test_gpu.py"))]
    rest = tuple(path for path in adapters if "meltr-core" not in path)
    return [
        card("transformer-base", 64, 0.35),
        card("violet-base", 8, 0.15, "--compiled", ""),
        card("resnet32", 512, 0.15, "--compiled", "", *(() if rehearsal else ("--set", "options.channels_last=true"))),
        Part(core.name, core.command, 0.2),
        Part("tests of the backbones", (*tests, *rest), 1.0),
    ]


def missing() -> list[str]:
    """Return the dependencies of meltr-core that cannot be imported."""
    project = tomllib.loads((ROOT / "packages/meltr-core/pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[<>=\[ ;]", each)[0] for each in project["dependencies"]]
    return [name for name in names if importlib.util.find_spec(IMPORTED.get(name, name)) is None]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with all packages of the checkout, as if they were installed.

    Args:
        folder: A new folder for their entry points.
    """
    sources = [str(folder), str(ROOT / "benchmarks")]
    for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        name, version = project["name"], project.get("version", "0")
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        groups = project.get("entry-points", {})
        lines = [line for group, found in groups.items() for line in (f"[{group}]", *map(" = ".join, found.items()))]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sources.append(str(file.parent / "src"))
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sources, *before]), "PYTHONUNBUFFERED": "1"}


class Runner:
    """Runs parts in time; if it is asked to end, it ends the part that runs.

    Args:
        seconds: For everything.
        env: The environment of the parts.
    """

    def __init__(self, seconds: float, env: dict[str, str]) -> None:
        self._end, self._whole, self._env = time.monotonic() + seconds - MARGIN, seconds, env
        self._running: subprocess.Popen[bytes] | None = None
        self._due = 0.0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked)

    def run(self, part: Part) -> str:
        """Run a part; return how it ended."""
        started = time.monotonic()
        self._due = min(self._end, max(self._due, started) + part.share * self._whole)
        limit = self._due - started
        if limit < GRACE:
            return "no time left"
        words = list(part.command)
        if "benchmarks/card.py" in words:
            words += ["--budget", f"{0.8 * limit:.0f}"]  # it begins no row that would hardly end
        print(f"\n# {part.name}: at most {limit:.0f} s", flush=True)
        self._running = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=self._env, start_new_session=True)
        try:
            code = self._running.wait(limit)
            return f"ended with {code} after {time.monotonic() - started:.0f} s"
        except subprocess.TimeoutExpired:
            self._stop()
            return f"stopped after {time.monotonic() - started:.0f} s"
        finally:
            self._running = None

    def _stop(self) -> None:
        """End the part that runs, with every process that it started."""
        if self._running is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._running.pid, number)
                self._running.wait(GRACE)
            except (subprocess.TimeoutExpired, ProcessLookupError):
                continue
            return

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self._stop()
        raise SystemExit(128 + number)


def main() -> int:
    """Run what the command line asks for; 1 if a part did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 minutes; the default")
    parser.add_argument("--full", action="store_true", help="10 minutes")
    parser.add_argument("--seconds", type=float, help="another limit")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal on small cases")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the measurements")
    parser.add_argument("--missing", action="store_true", help="name the packages that are not there")
    chosen = parser.parse_args()
    absent = missing()
    if chosen.missing or absent:
        print(f"missing packages: {', '.join(absent) or 'none'}")
        return 1 if absent else 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    seconds = chosen.seconds or (600.0 if chosen.full else 240.0)
    with tempfile.TemporaryDirectory() as folder:
        runner, ends = Runner(seconds, environment(Path(folder))), {}
        for part in parts(full=chosen.full, device=chosen.device, out=chosen.out.resolve()):
            ends[part.name] = runner.run(part)
            print(f"# {part.name}: {ends[part.name]}", flush=True)
    print("\n" + "\n".join(f"{name}: {end}" for name, end in ends.items()), flush=True)
    return 0 if all(end.startswith("ended with 0") for end in ends.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

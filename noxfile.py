"""Sessions of the project; bare ``nox`` runs lint, types, tests and isolated. ``nox -l`` lists them all."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "isolated"]

ROOT = Path(__file__).parent
CORE = "packages/meltr-core"
ADAPTERS = sorted(
    f"packages/{path.parent.name}"
    for path in ROOT.glob("packages/*/pyproject.toml")
    if path.parent.name != "meltr-core"
)
PINS = ("-c", "constraints.txt")
EXTRAS = "accelerate,captions,generation,lightning,plots,search,tensorboard,text,torchjd,transformers,video"
SOLVERS = ("cvxpy", "ecos; python_version < '3.13'")
"""What CAGrad and NashMTL need besides; ecos has no wheels for newer Pythons. The tests of both are skipped without."""

PARALLEL = ("-n", "2", "--dist", "worksteal")
"""Two processes, each with half of the tests; the first to end takes over tests of the other. So few modules are cut in
two, whose fixtures both processes would have to make."""


CACHED: dict[str, str | None] = {"PYTHONDONTWRITEBYTECODE": None}
"""The environment of sessions that start Python many times: what was compiled once is kept."""


ONE_THREAD: dict[str, str | None] = {**CACHED, "OMP_NUM_THREADS": "1"}
"""The environment of the tests: their models are so small that threads would only wait for each other."""


def install_all(session: nox.Session, *extra: str, compiled: bool = False) -> None:
    """Install all packages; `compiled`: with bytecode, else every process of a test compiles what it imports."""
    packages = [part for adapter in ADAPTERS for part in ("-e", adapter)]
    env = {"UV_COMPILE_BYTECODE": "1"} if compiled else {}
    session.install(*PINS, "-e", f"{CORE}[{EXTRAS}]", *packages, *extra, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format (ruff)."""
    session.install(*PINS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types (mypy, strict)."""
    install_all(session, "mypy", "pytest", "types-PyYAML")
    session.run("mypy", *(f"{package}/src" for package in (CORE, *ADAPTERS)))


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, but for slow ones and those that need a GPU."""
    install_all(session, "pytest", "pytest-xdist", "hypothesis", "peft", "scipy", *SOLVERS, compiled=True)
    session.run("pytest", *PARALLEL, "-m", "not slow and not gpu", *session.posargs, env=ONE_THREAD)


@nox.session
def trackers(session: nox.Session) -> None:
    """The tests of the trackers with the libraries themselves, which are large; the session tests has stand-ins."""
    install_all(session, "pytest", "wandb", "mlflow", "trackio")
    session.run("pytest", f"{CORE}/tests/observers/test_trackers.py", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The same tests with their coverage, printed by room. Measuring slows them down, so it is a session of its own."""
    install_all(session, "pytest", "pytest-xdist", "pytest-cov", "hypothesis", "peft", "scipy", *SOLVERS, compiled=True)
    options = (*PARALLEL, "-m", "not slow and not gpu", "--cov", "--cov-report=")
    session.run("pytest", *options, *session.posargs, env=ONE_THREAD)
    session.run("python", f"{CORE}/tests/helpers/coverage_rooms.py")


@nox.session
def tests_slow(session: nox.Session) -> None:
    """The slow tests."""
    install_all(session, "pytest", "pytest-xdist", "hypothesis", "peft", "scipy", "datasets", compiled=True)
    nothing_marked = 5
    session.run("pytest", "-m", "slow", *session.posargs, success_codes=[0, nothing_marked])


@nox.session
def isolated(session: nox.Session) -> None:
    """Each adapter alone with core, built and installed as a user would; ``-- violet`` chooses one.

    They share an environment, which is made to hold core, one adapter and what these two need, and nothing else. So
    libraries are compiled to bytecode once and not once per adapter.
    """
    folder = Path(session.create_tmp())
    wanted, exact = folder / "wanted.txt", folder / "exact.txt"
    for adapter in [f"packages/meltr-{name}" for name in session.posargs] or ADAPTERS:
        wanted.write_text(f"{ROOT / CORE}\n{ROOT / adapter}\n")
        session.run_install("uv", "pip", "compile", "--quiet", *PINS, "--output-file", str(exact), str(wanted))
        own = [word for name in ("meltr-core", Path(adapter).name) for word in ("--reinstall-package", name)]
        session.run_install("uv", "pip", "sync", *own, str(exact))
        session.run("meltr", "list", env=CACHED)
        tool = tomllib.loads((ROOT / adapter / "pyproject.toml").read_text())["tool"]
        if "meltr" in tool:
            session.run("meltr", "run", *tool["meltr"]["tiny-run"], "--fast-dev-run", env=CACHED)


@nox.session
def minimums(session: nox.Session) -> None:
    """The tests with the oldest versions that the packages claim to support."""
    packages = [part for package in ADAPTERS for part in ("-e", package)]
    session.install("--resolution", "lowest-direct", "-e", f"{CORE}[{EXTRAS}]", *packages)
    session.install("pytest", "pytest-xdist", "hypothesis", "peft", "scipy")
    session.run("pytest", *PARALLEL, "-m", "not slow and not gpu", *session.posargs, env=ONE_THREAD)


def has_gpu(session: nox.Session) -> bool:
    answer = session.run("python", "-c", "import torch; print(torch.cuda.is_available())", silent=True, external=False)
    return "True" in str(answer)


@nox.session
def gpu(session: nox.Session) -> None:
    """Everything that wants a GPU: what training costs there, then the tests marked so, within a limit of time.

    ``nox -s gpu`` or ``-- --quick`` takes four minutes of a GPU, ``-- --full`` ten. ``-- --device cpu`` is a rehearsal.
    """
    install_all(session, "pytest")
    if "cpu" not in session.posargs and not has_gpu(session):
        session.skip("no CUDA device on this machine")
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site in docs/_build/html, warnings as errors, then its notebooks; ``-- --external``: also outside links."""
    session.install(*PINS, "-e", CORE, "sphinx", "furo", "myst-parser", "nbclient", "ipykernel")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
    notebooks = [str(path) for path in sorted(ROOT.glob("docs/notebooks/*.ipynb"))]
    session.run("jupyter", "execute", *notebooks, env={"OMP_NUM_THREADS": "1"})
    if "--external" in session.posargs:
        session.run("sphinx-build", "-b", "linkcheck", "docs", "docs/_build/links")


@nox.session
def bench(session: nox.Session) -> None:
    """What training costs, in units of multi-task learning."""
    install_all(session)
    session.run("meltr", "bench", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Real runs, killed, stopped and damaged in every known way, then resumed and compared; counts what came of it."""
    install_all(session, compiled=True)
    session.run("python", "benchmarks/faults.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """20,000 tiny steps with data workers: memory, open files, threads, speed and size of the folder must not grow."""
    install_all(session, compiled=True)
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session
def repeat(session: nox.Session) -> None:
    """Every backbone twice with the same seed, and once more from the run's own folder: the same bytes."""
    install_all(session, compiled=True)
    session.run("python", "benchmarks/repeat.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Hostile files for every reader; anything but the reader's own error is a find."""
    install_all(session, "hypothesis", compiled=True)
    session.run("python", "benchmarks/fuzz.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what is installed (pip-audit), and ruff's security rules, as in lint.

    It fails too if the vulnerability service did not answer for any package. Arguments go to pip-audit.
    S101 and S311 are no findings: assert states what a type checker has to know, and random numbers are no secrets.
    """
    install_all(session, "pip-audit", "ruff")
    session.run("ruff", "check", "--select", "S", "--ignore", "S101,S311", ".")
    session.run("python", "benchmarks/audit.py", *session.posargs)


@nox.session
@nox.parametrize("kind", ["plain", "image", "text", "video"])
def kit(session: nox.Session, kind: str) -> None:
    """`meltr new-backbone`: a package of each kind in an empty environment, as its author has it; its tests."""
    extras = "[text,video]" if kind == "video" else ""
    session.install(*PINS, f"./{CORE}{extras}")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / f"meltr-a-{kind}", ignore_errors=True)
    session.run("meltr", "new-backbone", f"a-{kind}", "--kind", kind, "--output-dir", str(folder))
    words = {"text": ["--sample"], "video": ["--task", "qa", "--dataset", "msvd", "--sample"]}.get(kind, [])
    with session.chdir(folder / f"meltr-a-{kind}"):
        session.install("-e", ".[test]")
        session.run("pytest", env={"OMP_NUM_THREADS": "1"})
        session.run("meltr", "run", "--backbone", f"a-{kind}", *words, "--quiet")

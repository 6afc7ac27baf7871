"""Schemes and estimators as plugins register them and users select them, core's own and a third party's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import meltr
from meltr.cli.list_ import describe
from meltr.engine.run import execute
from meltr.errors import PluginError, UserError
from meltr.plugins import Registry, discover, load_object
from meltr.settings import dump_yaml, resolve
from places import TOY

MINE = '''
import dataclasses
import meltr
from meltr.specs import Info

class Options(Info):
    """Settings.

    Args:
        length: Factor on v.
    """
    length: float = 1.0

class Size(Info):
    size: int = 1

@meltr.hookimpl
def register_schemes():
    return [
        meltr.SchemeInfo(name="mine", summary="v.", factory=f"{__name__}:Mine", options=f"{__name__}:Options"),
        meltr.SchemeInfo(name="wrong", summary="No scheme.", factory="builtins:dict"),
    ]

@meltr.hookimpl
def register_estimators():
    names = {"factory": f"{__name__}:Counted", "options": f"{__name__}:Size"}
    return [meltr.EstimatorInfo(name="counted", summary="Rows.", **names)]

@dataclasses.dataclass(frozen=True)
class Mine(meltr.Scheme):
    name = "mine"
    length: float = 1.0

    def direction(self, problem):
        if self.length < 0:
            raise meltr.UserError("negative")
        return [None if part is None else self.length * part for part in problem.primary_gradient()]

class Counted(meltr.PerTask):
    name = "counted"

    def __init__(self, size):
        self.calls, self.size = 0, size

    def __call__(self, problem, direction):
        self.calls += self.size
        problem.log(f"call {self.calls}")
        return super().__call__(problem, direction)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]
'''
CHOICE = {"backbone": "toy", "task": "classification", "dataset": "rings"}
SMALL = {"combiner": "linear", "device": "cpu", "train.epochs": 2, "train.batch_size": 16, "train.log_every": 1}


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """The toy backbone, and a third party's scheme and estimator, each in a file."""
    mine = tmp_path / f"mine_{tmp_path.name}.py".replace("-", "_")
    mine.write_text(MINE, encoding="utf-8")
    return [TOY, mine]


@pytest.fixture
def registry(files) -> Registry:
    return discover(files)


def run(registry: Registry, folder: Path, sets: list[str], **more) -> dict:
    spec = resolve(registry, **CHOICE, flags=SMALL, sets=sets)
    return execute(spec, run_dir=folder, registry=registry, **more)


def outer_lines(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["gradient_products"] for line in lines if line["kind"] == "outer"]


def test_a_third_party_s_scheme_and_estimator_train_a_run(registry, tmp_path):
    """q = v times a power of two: the first g is that of the paper's scheme times it."""
    results = run(registry, tmp_path / "mine", ["scheme=mine", "length=0.5", "estimator=counted", "size=2"])
    run(registry, tmp_path / "paper", ["estimator=per_task"])
    assert results["estimator"] == "counted"
    assert results["spec"]["scheme_options"] == {"length": 0.5}
    assert results["spec"]["estimator_options"] == {"size": 2}
    found, expected = outer_lines(tmp_path / "mine")[0], outer_lines(tmp_path / "paper")[0]
    assert found == pytest.approx({name: 0.5 * value for name, value in expected.items()}, rel=1e-6)
    said = (tmp_path / "mine" / "log.txt").read_text(encoding="utf-8")
    assert [f"call {2 * number}" in said for number in (1, 2)] == [True, True]


def test_the_state_of_an_estimator_survives_a_kill(registry, tmp_path):
    class StopError(Exception):
        pass

    class Stop:
        @meltr.hookimpl
        def on_checkpoint(self, path):
            raise StopError

    sets = ["scheme=mine", "estimator=counted", "checkpoint_every=4", "max_steps=10"]
    with pytest.raises(StopError):
        run(registry, tmp_path / "cut", sets, observers=[Stop()])
    run(registry, tmp_path / "cut", sets, resume=True)
    assert "call 3" in (tmp_path / "cut" / "log.txt").read_text(encoding="utf-8").split("resumed at step 4")[1]


def test_a_setting_that_the_scheme_does_not_read_is_refused(registry):
    def hint(*sets: str) -> str:
        with pytest.raises(UserError, match="unknown setting") as raised:
            resolve(registry, **CHOICE, sets=sets)
        return raised.value.hint or ""

    assert hint("scheme=aid-fp", "damping=0.1") == (
        "It is a setting of the scheme 'aid-cg'; this run uses 'aid-fp' (its settings: terms, step, scaled, hessian)."
    )
    assert hint("terms=2") == (
        "It is a setting of the schemes 'aid-fp', 'aid-cg', 'stocbio'; this run uses 'aid-fp-lite' "
        "(its settings: none)."
    )
    assert "of the scheme 'mine'" in hint("scheme_options.length=2")
    assert "of the estimators 'one_sided', 'difference'; this run uses 'auto'" in hint("recheck=5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheme=aid-fp-light", "Did you mean 'aid-fp-lite'"),
        ("estimator=forwards", "Did you mean 'forward'"),
        ("bilevel.scheme=mien", "Did you mean 'mine'"),
    ],
)
def test_unknown_names_are_guessed(registry, text, message):
    with pytest.raises(UserError, match=r"unknown (scheme|estimator)") as raised:
        resolve(registry, **CHOICE, sets=[text])
    assert message in (raised.value.hint or "")


def test_settings_out_of_range_are_named(registry):
    with pytest.raises(UserError, match=r"scheme_options.step = -1 \(--set\)") as raised:
        resolve(registry, **CHOICE, sets=["scheme=itd", "step=-1"])
    assert "--scheme itd" in (raised.value.hint or "")


def test_what_a_file_says_about_another_scheme_does_not_count(registry, tmp_path):
    file = tmp_path / "run.yaml"
    spec = resolve(registry, **CHOICE, sets=["scheme=aid-fp", "terms=5", "estimator=difference", "recheck=7"])
    file.write_text(dump_yaml(spec), encoding="utf-8")
    assert resolve(registry, config=file) == spec
    changed = resolve(registry, config=file, sets=["scheme=stocbio", "estimator=one_sided"])
    assert changed.scheme_options == {"terms": 3, "step": 0.5, "hessian": "difference"}
    assert changed.estimator_options == {"recheck": 100}
    assert resolve(registry, config=file, sets=["step=0.25"]).scheme_options["terms"] == 5


def test_a_combiner_s_own_scheme_gives_way(registry):
    assert resolve(registry, **CHOICE, flags={"combiner": "auto-lambda"}, sets=["step=0.1"]).scheme_options == {
        "step": 0.1
    }
    spec = resolve(registry, **CHOICE, flags={"combiner": "auto-lambda", "bilevel.scheme": "sama"})
    assert (spec.bilevel.scheme, spec.scheme_options) == ("sama", {})


def test_a_factory_that_makes_something_else_is_named(registry, tmp_path):
    with pytest.raises(PluginError, match=r"scheme 'wrong' \(builtins:dict\) returned dict, expected a meltr.Scheme"):
        run(registry, tmp_path / "run", ["scheme=wrong"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["schemes", "estimators"])
def test_settings_have_one_name_and_one_default_up_to_the_class(kind):
    for info in getattr(discover(), kind).values():
        made = load_object(info.factory)()
        assert made.name == info.name
        options = load_object(info.options)().model_dump() if info.options else {}
        fields = dataclasses.asdict(made) if kind == "schemes" else {key: getattr(made, key) for key in options}
        assert fields == options, info.name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: meltr.AIDFP(terms=-1), "terms must be at least 0, got -1"),
        (lambda: meltr.AIDFP(step=0.0), "step must be a positive number, got 0.0"),
        (lambda: meltr.AIDCG(damping=-1.0), "damping must be a number of at least 0, got -1.0"),
        (lambda: meltr.StocBiO(hessian="exact"), "hessian must be 'difference' or 'double_backward', got 'exact'"),
        (lambda: meltr.ITD(step=float("nan")), "step must be a positive number, got nan"),
        (lambda: meltr.OneSidedDifference(recheck=0), "recheck must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lists_show_them(registry):
    sources = {each["name"]: each["source"] for kind in ("schemes", "estimators") for each in describe(registry, kind)}
    assert {"mine", "counted", "aid-cg", "forward"} <= set(sources)
    assert sources["mine"].endswith(".py")
    assert sources["aid-cg"].startswith("meltr-core")

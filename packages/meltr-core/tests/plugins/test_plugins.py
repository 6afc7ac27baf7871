"""Discovery: one broken plugin is reported with its cause, and nothing of it stays."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import typer

from meltr.cli.app import build_app
from meltr.errors import PluginError, UserError
from meltr.hookspecs import hookimpl
from meltr.plugins import BUILTIN, Registry, discover, load_object, run_manager
from meltr.specs import RunSpec

IMPORTS = """
from meltr import BackboneInfo, BackboneTask, CombinerInfo, DatasetInfo, PresetInfo, TaskInfo, hookimpl
"""

GOOD = (
    IMPORTS
    + """
@hookimpl
def register_tasks():
    return [TaskInfo(name="{name}-task", summary="t", metrics=("score",))]

@hookimpl
def register_datasets():
    return [DatasetInfo(name="{name}-data", summary="d", tasks=("{name}-task",))]

@hookimpl
def register_backbones():
    task = BackboneTask(task="{name}-task", losses=("main", "side"), datasets=("{name}-data",))
    return [BackboneInfo(name="{name}", summary="b", adapter=f"{{__name__}}:Adapter", tasks=(task,))]

class Adapter:
    @hookimpl
    def build_data(self, context): return "data"
    @hookimpl
    def build_model(self, context, data): return "model"
    @hookimpl
    def compute_task_losses(self, model, batch): return {{}}
    @hookimpl
    def evaluate(self, model, data): return "evaluation"
"""
)


class FakeDistribution:
    def __init__(self, name: str) -> None:
        self.name = name
        self.version = "1.2"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that 'installs' plugins: entry point name -> source of its module."""
    entries: list[importlib.metadata.EntryPoint] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: list(entries))
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(**sources: str) -> None:
        for name, source in sources.items():
            module = f"fake_{tmp_path.name}_{name}".replace("-", "_")
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            entry = importlib.metadata.EntryPoint(name, module, "meltr")
            vars(entry).update(dist=FakeDistribution(f"meltr-{name}"))
            entries.append(entry)
            monkeypatch.delitem(sys.modules, module, raising=False)

    return add


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])

    def write(source: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    return write


def only_broken(registry: Registry):
    assert len(registry.broken) == 1, registry.broken
    return registry.broken[0]


def test_healthy_plugins_are_collected_with_their_owner(install):
    install(toy=GOOD.format(name="toy"))
    registry = discover()
    assert registry.broken == []
    assert registry.backbone("toy").task("toy-task").losses == ("main", "side")
    assert registry.dataset("toy-data").tasks == ("toy-task",)
    assert registry.task("toy-task").metrics == ("score",)
    assert registry.combiner("meltr").learned
    assert registry.owner("backbone", "toy") == "meltr-toy 1.2"
    assert registry.owner("combiner", "meltr").startswith("meltr-core ")
    assert len(registry.modules) == len(BUILTIN) + 1
    with pytest.raises(KeyError):
        registry.owner("backbone", "absent")


BROKEN = {
    "import": ("import a_module_that_is_not_there\n", ["ModuleNotFoundError", "a_module_that_is_not_there", "line 1"]),
    "syntax": ("def oops(:\n", ["SyntaxError", "line 1"]),
    "leaves": ("import sys\nsys.exit(3)\n", ["SystemExit"]),
    "raises": (
        IMPORTS + "@hookimpl\ndef register_tasks():\n    raise RuntimeError('no luck')\n",
        ["RuntimeError: no luck", "line 5"],
    ),
    "misspelt": (
        IMPORTS + "@hookimpl\ndef register_backbone():\n    return []\n",
        ["register_backbone()", "Did you mean 'register_backbones'"],
    ),
    "argument": (
        IMPORTS + "@hookimpl\ndef register_tasks(nonsense):\n    return []\n",
        ["nonsense", "register_tasks"],
    ),
    "undecorated": (
        "def register_backbones():\n    return []\n",
        ["implements no hook", "@hookimpl", "before register"],
    ),
    "empty": ("x = 1\n", ["implements no hook"]),
    "adapter_hook": (
        IMPORTS + "@hookimpl\ndef evaluate(model):\n    return None\n",
        ["evaluate()", "belongs to the adapter class"],
    ),
    "not_a_list": (
        IMPORTS + "@hookimpl\ndef register_tasks():\n    return TaskInfo(name='t', summary='', metrics=('m',))\n",
        ["register_tasks()", "list of TaskInfo", "TaskInfo"],
    ),
    "wrong_type": (
        IMPORTS + "@hookimpl\ndef register_tasks():\n    return ['text']\n",
        ["register_tasks()", "list of TaskInfo", "str"],
    ),
    "invalid": (
        IMPORTS + "@hookimpl\ndef register_tasks():\n    return [TaskInfo(name='t', summary='', metrics=())]\n",
        ["TaskInfo", "metrics", "at least 1 item"],
    ),
    "twice": (
        IMPORTS
        + "@hookimpl\ndef register_tasks():\n"
        + "    return [TaskInfo(name='t', summary='', metrics=('m',))] * 2\n",
        ["register_tasks()", "'t' twice"],
    ),
    "core_name": (
        IMPORTS
        + "@hookimpl\ndef register_combiners():\n    return [CombinerInfo(name='sum', summary='', factory='a:b')]",
        ["combiner 'sum' is already registered", "meltr-core", "meltr-broken 1.2"],
    ),
    "api": (
        GOOD.format(name="newer").replace("tasks=(task,))", "tasks=(task,), plugin_api=99)"),
        ["'newer'", "API 99", "this meltr has 1", "Upgrade meltr-core"],
    ),
    "old_api": (
        GOOD.format(name="older").replace("tasks=(task,))", "tasks=(task,), plugin_api=0)"),
        ["API 0", "Upgrade the plugin"],
    ),
    "unknown_task": (
        GOOD.format(name="u").replace('BackboneTask(task="u-task"', 'BackboneTask(task="u-tsak"'),
        ["unknown task 'u-tsak'", "Did you mean 'u-task'"],
    ),
    "unknown_dataset": (
        GOOD.format(name="u").replace('datasets=("u-data",)', 'datasets=("u-date",)'),
        ["unknown data set 'u-date'", "Did you mean 'u-data'"],
    ),
    "preset": (
        GOOD.format(name="p").replace("tasks=(task,))", "tasks=(task,), default_presets={'p-data': 'fast'})"),
        ["unknown preset 'fast'"],
    ),
    "preset_key": (
        GOOD.format(name="p").replace(
            "tasks=(task,))",
            "tasks=(task,), presets=(PresetInfo(name='fast', summary='', settings={}),),"
            " default_presets={'p-dta': 'fast'})",
        ),
        ["default_presets['p-dta']", "Did you mean 'p-data'"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_with_its_cause_and_leaves_nothing_behind(install, kind):
    source, words = BROKEN[kind]
    install(broken=source, toy=GOOD.format(name="toy"))
    registry = discover()
    report = only_broken(registry)
    assert (report.name, report.source) == ("broken", "meltr-broken 1.2")
    for word in words:
        assert word in report.cause
    assert list(registry.backbones) == ["toy"]
    for kind, names in (("dataset", registry.datasets), ("task", registry.tasks), ("combiner", registry.combiners)):
        assert {registry.owner(kind, name).split()[0] for name in names} <= {"meltr-core", "meltr-toy"}
    assert len(registry.modules) == len(BUILTIN) + 1


def test_of_two_plugins_with_one_name_the_first_wins_and_both_are_named(install):
    install(beta=GOOD.format(name="same"), alpha=GOOD.format(name="same"))
    registry = discover()
    assert registry.owner("backbone", "same") == "meltr-alpha 1.2"
    report = only_broken(registry)
    assert report.name == "beta"
    assert "'same" in report.cause
    assert "'alpha' (meltr-alpha 1.2)" in report.cause
    assert "'beta' (meltr-beta 1.2)" in report.cause


def test_a_plugin_that_builds_on_a_broken_one_is_broken_too(install):
    user = GOOD.format(name="user").replace('datasets=("user-data",)', 'datasets=("base-data",)')
    base = GOOD.format(name="base").replace('datasets=("base-data",)', 'datasets=("absent",)')
    install(user=user, base=base)
    registry = discover()
    assert {plugin.name for plugin in registry.broken} == {"user", "base"}
    assert not registry.backbones
    assert not {"user-data", "base-data"} & registry.datasets.keys()


def test_a_backbone_may_use_tasks_and_data_sets_of_another_plugin(install):
    user = GOOD.format(name="a").replace('datasets=("a-data",)', 'datasets=("z-data",)')
    install(a=user, z=GOOD.format(name="z"))
    assert set(discover().backbones) == {"a", "z"}


def test_what_a_plugin_prints_stays_off_standard_output(install, capsys):
    install(loud="print('hello')\n" + GOOD.format(name="toy"))
    assert discover().broken == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_unknown_names_suggest_and_mention_broken_plugins(install):
    install(broken="import a_module_that_is_not_there", toy=GOOD.format(name="toy"))
    registry = discover()
    with pytest.raises(UserError) as caught:
        registry.backbone("toi")
    assert caught.value.message == "unknown backbone 'toi'"
    assert "Did you mean 'toy'?" in caught.value.hint
    assert "plugin 'broken' (meltr-broken 1.2), which is broken: ModuleNotFoundError" in caught.value.hint
    for method, noun in (("task", "task"), ("dataset", "data set"), ("combiner", "combiner")):
        with pytest.raises(UserError, match=f"unknown {noun} 'nope'"):
            getattr(registry, method)("nope")


def test_a_plugin_in_one_file_can_name_its_own_adapter(file):
    registry = discover([file(GOOD.format(name="toy"))])
    info = registry.backbone("toy")
    assert info.adapter == "meltr_plugin_mine:Adapter"
    assert load_object(info.adapter).__name__ == "Adapter"


def test_two_files_of_the_same_name_do_not_clash(file):
    first, second = file(GOOD.format(name="one")), file(GOOD.format(name="two"), "sub/mine.py")
    registry = discover([first, second])
    adapters = {load_object(registry.backbone(name).adapter) for name in ("one", "two")}
    assert len(adapters) == 2


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_an_error_at_once(file, kind):
    source, words = BROKEN[kind]
    path = file(source)
    with pytest.raises(PluginError) as caught:
        discover([path])
    assert str(path) in caught.value.message
    for word in words:
        assert word.replace("meltr-broken 1.2", str(path)) in caught.value.message
    assert "meltr_plugin_mine" not in sys.modules or kind not in ("import", "syntax", "leaves")


def test_a_missing_file_and_a_file_that_is_no_python(file, tmp_path):
    with pytest.raises(UserError, match=r"absent\.py: there is no such file"):
        discover([tmp_path / "absent.py"])
    with pytest.raises(PluginError, match=r"must end in \.py"):
        discover([file("x", "notes.txt")])


def test_load_object_says_what_is_missing():
    with pytest.raises(PluginError, match=r"cannot be loaded: ModuleNotFoundError"):
        load_object("no_such_module:Thing")
    with pytest.raises(PluginError) as caught:
        load_object("meltr.errors:UserEror")
    assert "no 'UserEror'" in caught.value.message
    assert "Did you mean 'UserError'" in caught.value.hint


COMMANDS = (
    IMPORTS
    + """
@hookimpl
def register_commands(app):
    @app.command("greet")
    def greet() -> None:
        print("hello")
    {more}
"""
)


def command_names(app: typer.Typer) -> list[str | None]:
    return [each.name for each in app.registered_commands]


def test_plugins_add_commands_and_a_failing_one_is_taken_out(install):
    install(good=COMMANDS.format(more=""), raises=COMMANDS.format(more="1 / 0"), zwice=COMMANDS.format(more=""))
    registry = discover()
    app = build_app(registry)
    assert command_names(app).count("greet") == 1
    assert [plugin.name for plugin in registry.broken] == ["raises", "zwice"]
    assert "ZeroDivisionError: division by zero" in registry.broken[0].cause
    assert "register_commands() adds ['greet'], which another plugin or core already has" in registry.broken[1].cause
    assert len(registry.modules) == len(BUILTIN) + 1


class Watcher:
    def __init__(self) -> None:
        self.seen: list[str] = []

    @hookimpl
    def on_run_end(self, results) -> None:
        self.seen.append(results["run"])


def test_the_run_manager_has_one_adapter_the_observers_and_observing_modules(install):
    observing = IMPORTS + "SEEN = []\n@hookimpl\ndef on_run_end(results):\n    SEEN.append(results)\n"
    install(other=GOOD.format(name="other"), observing=observing, toy=GOOD.format(name="toy"))
    registry = discover()
    spec = RunSpec(backbone="toy", task="toy-task", dataset="toy-data", losses=("main",))
    watcher = Watcher()
    manager = run_manager(registry, spec, [watcher])
    assert manager.hook.build_model(context=None, data=None) == "model"
    assert len(manager.hook.evaluate.get_hookimpls()) == 1
    manager.hook.on_run_end(context=None, results={"run": "r"})
    assert watcher.seen == ["r"]
    module = next(each for each in registry.modules if hasattr(each, "SEEN"))
    assert module.SEEN == [{"run": "r"}]


ADAPTERS = {
    "undecorated": (("    @hookimpl\n    def evaluate", "    def evaluate"), ["evaluate()", "Put @hookimpl"]),
    "missing": (("def build_data", "def build_datum_"), ["there is no hook build_datum_()", "'build_data'"]),
    "absent": (
        ("    @hookimpl\n    def build_data(self, context): return", "    build = lambda self:"),
        ["lacks the required hook build_data()", "Write build_data"],
    ),
    "extra": (
        ("return {}", "return {}\n    @hookimpl\n    def on_step_ends(self): pass"),
        ["on_step_ends", "on_step_end"],
    ),
    "arguments": (("def evaluate(self, model, data)", "def evaluate(self, modell)"), ["modell", "hookspecs"]),
    "init": (("class Adapter:", "class Adapter:\n    def __init__(self, size): pass"), ["without arguments", "size"]),
    "name": (("class Adapter:", "class Adaptor:"), ["no 'Adapter'", "Did you mean 'Adaptor'"]),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_wrong_adapter_is_named_with_the_hook(file, kind):
    (old, new), words = ADAPTERS[kind]
    source = GOOD.format(name="toy")
    assert old in source
    registry = discover([file(source.replace(old, new))])
    with pytest.raises(PluginError) as caught:
        run_manager(registry, registry.backbone("toy"))
    for word in words:
        assert word in str(caught.value)
    if kind != "name":
        assert "'meltr_plugin_mine:Adapter' of backbone 'toy'" in caught.value.message


def test_an_observer_without_hooks_or_with_a_misspelt_one_is_refused(file):
    class Misspelt:
        @hookimpl
        def on_run_ends(self) -> None: ...

    registry = discover([file(GOOD.format(name="toy"))])
    with pytest.raises(PluginError, match="observer object implements no hook"):
        run_manager(registry, registry.backbone("toy"), [object()])
    with pytest.raises(PluginError, match=r"observer Misspelt: there is no hook on_run_ends\(\)"):
        run_manager(registry, registry.backbone("toy"), [Misspelt()])


def test_discovery_imports_no_torch():
    code = "import sys; from meltr.plugins import discover; discover(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Entry:
    """An installed plugin, as `importlib.metadata` describes it."""

    dist = None

    def __init__(self, name: str, loaded: list[str]) -> None:
        self.name, self.value, self._loaded = name, f"{name}_module", loaded

    def load(self) -> object:
        self._loaded.append(self.name)
        return object()


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, ["one", "two"]), ("two", ["two"]), (" one , two ", ["one", "two"]), ("", [])]
)
def test_only_the_chosen_installed_plugins_are_loaded(monkeypatch, chosen, expected):
    loaded: list[str] = []
    entries = [Entry("one", loaded), Entry("two", loaded)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    if chosen is None:
        monkeypatch.delenv("MELTR_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("MELTR_PLUGINS", chosen)
    discover()
    assert loaded == expected


def test_a_chosen_plugin_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry("vision", [])])
    monkeypatch.setenv("MELTR_PLUGINS", "visio")
    with pytest.raises(UserError, match=r"MELTR_PLUGINS names 'visio'(?s:.*)Did you mean 'vision'"):
        discover()


def test_no_plugins_loads_none_whatever_the_command(tmp_path):
    command = [sys.executable, "-m", "meltr", "list", "backbones", "--no-plugins"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "none: install an adapter package" in done.stdout

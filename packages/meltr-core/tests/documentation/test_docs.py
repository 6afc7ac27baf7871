"""The documentation says what the code does: hooks, examples, settings; and core names no backbone."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import meltr
from command_line import call
from meltr.diagnosis.hit_rate import TRUTHS, HitRate
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.hookspecs import AdapterSpecs, DiscoverySpecs, ObserverSpecs
from meltr.plugins import Registry, discover
from meltr.recipes import RecipeInfo
from meltr.setting_keys import Keys, Parts
from meltr.settings import resolve
from meltr.sweeps.plan import Sweep, points_of
from meltr.video import annotations, miniature
from places import CORE, ROOT, TOY

SECTIONS = ("train", "bilevel", "data", "options", "combiner_options")
PAGES = (
    "docs/architecture.md",
    "docs/method.md",
    "docs/plugins.md",
    "docs/write_a_backbone.md",
    "docs/cli.md",
    "docs/recipes.md",
    "docs/data.md",
    "docs/scaling.md",
    "docs/integrations.md",
    "docs/efficiency.md",
    "docs/results.md",
    "docs/reports.md",
    "docs/diagnose.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
PUBLISHED = ("violet", "univl", "all-in-one", "all_in_one", "allinone", "alpro", "resnet", "siglip", "videomae")
ORDINARY = {"clip": "meltr[-_.]clip"}
"""Names of backbones that are words of core, too (a clip of a video, to clip a gradient) -> what core must not say."""


def read(path: Path) -> str:
    if not path.is_file():
        pytest.skip(f"no {path.name} here: the tests run outside the repository")
    return path.read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover([TOY])


HOOKS: dict[str, Any] = {
    name: hook
    for spec in (DiscoverySpecs, AdapterSpecs, ObserverSpecs)
    for name, hook in vars(spec).items()
    if not name.startswith("_")
}


@pytest.mark.parametrize(("name", "hook"), HOOKS.items(), ids=list(HOOKS))
def test_every_hook_stands_in_the_plugin_guide_with_its_signature(name, hook):
    signature = inspect.signature(hook)
    arguments = [f"{each.name}: {each.annotation}" for each in signature.parameters.values() if each.name != "self"]
    expected = f"{name}({', '.join(arguments)}) -> {signature.return_annotation}"
    assert expected in read(ROOT / "docs" / "plugins.md").splitlines()


def test_the_plugin_guide_has_no_hook_that_does_not_exist():
    documented = re.findall(r"^(\w+)\(.*\) -> ", read(ROOT / "docs" / "plugins.md"), re.M)
    assert sorted(documented) == sorted(HOOKS)


def contract() -> str:
    guide = read(ROOT / "docs" / "plugins.md")
    return guide.partition("## The public contract\n")[2].partition("\n## ")[0]


def test_the_plugin_guide_lists_the_names_that_meltr_exports():
    table = contract().partition("| module | for |")[0]
    listed = [
        name for row in re.findall(r"^\| [^|]+ \| (`.*) \|$", table, re.M) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(listed) == sorted(meltr.__all__)
    assert all(hasattr(meltr, name) for name in listed)


def test_the_modules_of_the_public_contract_exist():
    rows = re.findall(r"^\| (`meltr\..*) \| .* \|$", contract(), re.M)
    modules = [name for row in rows for name in re.findall(r"`(meltr[\w.]+)`", row)]
    assert len(modules) > 5
    for name in modules:
        importlib.import_module(name)


def test_the_examples_of_the_plugin_guide_run(tmp_path, capfd):
    """As the files that a reader would make of them: a backbone, an observer, a combiner, and a scheme."""
    examples = [block for block in python_blocks(read(ROOT / "docs" / "plugins.md")) if "@meltr.hookimpl" in block]
    assert len(examples) == 4
    files = [tmp_path / f"{tmp_path.name}_{number}.py".replace("-", "_") for number in range(4)]
    for file, example in zip(files, examples, strict=True):
        file.write_text(example, encoding="utf-8")
    registry = discover(files)
    flags = {"combiner": "softmax", "train.batch_size": 32, "device": "cpu"}
    flags |= {"scheme": "short", "scheme_options.length": 0.5, "estimator": "exact"}
    spec = resolve(registry, backbone="mine", task="classification", dataset="blobs", flags=flags, plugins=files)
    results = execute(spec, run_dir=None, registry=registry, fast_dev_run=True)
    assert (results["steps"], results["outer_steps"]) == (7, 2)
    assert results["test"]["count"] == 128
    assert "validation 7 {'top1':" in capfd.readouterr().out


def test_the_example_backbone_is_resumed_exactly(tmp_path):
    """The guide asks for a pure batch source and no state; its own example must obey."""
    example = next(b for b in python_blocks(read(ROOT / "docs" / "plugins.md")) if "register_backbones" in b)
    file = tmp_path / f"resumed_{tmp_path.name}.py".replace("-", "_")
    file.write_text(example, encoding="utf-8")
    registry = discover([file])
    flags = {
        "train.batch_size": 32, "train.epochs": 1, "train.log_every": 1, "train.checkpoint_every": 5, "device": "cpu",
        "combiner_options.width": 16, "combiner_options.heads": 2,
    }  # fmt: skip
    spec = resolve(registry, backbone="mine", task="classification", dataset="blobs", flags=flags, plugins=[file])

    class StopError(Exception):
        pass

    class Stop:
        @meltr.hookimpl
        def on_checkpoint(self, path):
            if path.name == "step-000005":
                raise StopError

    with pytest.raises(StopError):
        execute(spec, run_dir=tmp_path / "cut", registry=registry, observers=[Stop()])
    resumed = execute(spec, run_dir=tmp_path / "cut", registry=registry, resume=True)
    whole = execute(spec, run_dir=tmp_path / "whole", registry=registry)
    assert resumed["test"] == whole["test"]
    assert resumed["validation"] == whole["validation"]


def test_the_python_example_of_the_readme_runs():
    (example,) = python_blocks(read(CORE / "README.md"))
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["bilevel"].outer_steps == 2
    assert names["result"].losses.shape == names["result"].sensitivities.shape == (2,)
    assert names["result"].outer.applied


INTEGRATIONS = {
    "meltr.integrations.transformers": "transformers",
    "meltr.integrations.accelerate": "accelerate",
    "meltr.integrations.lightning": "lightning",
    "meltr.integrations.fabric": "lightning",
}


@pytest.mark.parametrize(("module", "library"), INTEGRATIONS.items(), ids=list(INTEGRATIONS))
def test_the_examples_of_the_integrations_run(module, library, tmp_path, monkeypatch):
    """Each as it stands; its combiner is trained."""
    pytest.importorskip(library)
    pytest.importorskip("accelerate" if library == "transformers" else library)
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, {"ACCELERATE_USE_CPU": "1", "TRANSFORMERS_VERBOSITY": "error"}.get(name, ""))
    if library in ("transformers", "accelerate"):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    (example,) = [
        block for block in python_blocks(read(ROOT / "docs" / "integrations.md")) if f"from {module} " in block
    ]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "integrations.md", "exec"), names)
    bilevel = names["module"].bilevel if "module" in names else names.get("bilevel") or names["trainer"].bilevel
    assert bilevel.state_dict()["outer_steps"] >= 2


def test_every_example_of_the_integrations_page_is_one_that_runs():
    text = read(ROOT / "docs" / "integrations.md")
    assert len(python_blocks(text)) == len(INTEGRATIONS)
    assert all(f"`{module}`" in text for module in INTEGRATIONS)


def test_the_manifests_of_the_data_page_are_read(tmp_path):
    """Each example by the tasks that it is for; the files that it names are not opened."""
    blocks = re.findall(r"^```json\n(.*?)^```", read(ROOT / "docs" / "data.md"), re.M | re.S)
    tasks = (("retrieval", "captioning"), ("qa",), ("qa",), ("sentiment",), ("action", "classification"))
    for block, names in zip(blocks, tasks, strict=True):
        lines = block.splitlines()
        (tmp_path / "manifest.jsonl").write_text(block, encoding="utf-8")
        for line in lines:
            record = json.loads(line)
            file = tmp_path / str(record.get("video", record.get("image")))
            file.parent.mkdir(exist_ok=True)
            file.touch()
        for task in names:
            corpus = annotations.read("manifest", task, tmp_path)
            assert sum(map(len, corpus.splits.values())) == len(lines)
            assert len(corpus.media) == len(lines)


def test_the_examples_of_the_recipes_page_are_sweeps_and_a_recipe():
    blocks = re.findall(r"^```yaml\n(.*?)^```", read(ROOT / "docs" / "recipes.md"), re.M | re.S)
    grid, search, recipe = map(yaml.safe_load, blocks)
    plan = Sweep.model_validate({"name": "rates", **grid})
    assert len(points_of(plan)) * len(plan.seeds) == 18
    assert Sweep.model_validate({"name": "rates", **search}).trials == 20
    assert RecipeInfo.model_validate({"name": "x/y", "backbone": "mine", **recipe}).paper.figures == {"accuracy": None}


def test_the_python_example_of_the_data_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    miniature.write("manifest", tmp_path / "own", sizes={"train": 8, "validation": 1, "test": 1})
    monkeypatch.chdir(tmp_path)
    (example,) = python_blocks(read(ROOT / "docs" / "data.md"))
    exec(compile(example, "data.md", "exec"), {})
    assert re.search(r"\(5, \d+, \d+, 3\)$", capsys.readouterr().out.strip())


def test_the_data_page_names_every_data_set_and_its_annotations():
    text = read(ROOT / "docs" / "data.md")
    for name in annotations.READERS:
        layout = annotations.layout(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        for count in layout.published.values():
            assert f"{count:,}" in row, (name, count)
        for file in layout.files:
            known = any(f"`{other}`" in text for other in file.names)
            assert known, f"{name}: data.md does not name {file.names[0]}"


def without_code(text: str) -> str:
    return re.sub(r"^```python\n.*?^```", "", text, flags=re.M | re.S)


def setting_paths(text: str) -> set[str]:
    text = without_code(text)
    dotted = re.findall(rf"(?<![\w./])((?:{'|'.join(SECTIONS)})\.[a-z_]+)(?![\w./(])", text)
    typed = re.findall(r"--set ([a-z_.]+)=", text)
    return {path for path in [*dotted, *typed] if not path.endswith((".py", ".md", ".json", ".csv"))}


def plugins_in(page: str, folder: Path) -> list[Path]:
    """Write the examples of a page that are plugins into a folder."""
    found = [block for block in python_blocks(read(ROOT / page)) if "@meltr.hookimpl" in block]
    files = [folder / f"plugin_{number}.py" for number in range(len(found))]
    for file, block in zip(files, found, strict=True):
        file.write_text(block, encoding="utf-8")
    return files


@pytest.mark.parametrize("page", [*PAGES, "packages/meltr-core/README.md"])
def test_every_setting_that_a_page_names_exists(registry, page, tmp_path):
    if page == "docs/write_a_backbone.md":  # It names settings of its own examples.
        registry = discover(plugins_in(page, tmp_path))
    keys = [
        Keys(registry, backbone, Parts.named(registry, combiner=combiner))
        for backbone in (None, *registry.backbones.values())
        for combiner in registry.combiners
    ]
    keys += [Keys(registry, None, Parts.named(registry, scheme=name)) for name in registry.schemes]
    keys += [Keys(registry, None, Parts.named(registry, estimator=name)) for name in registry.estimators]

    def exists(path: str) -> bool:
        for each in keys:
            try:
                each.expand(path, "docs")
            except UserError:
                continue
            return True
        return False

    examples_of_mistakes = {"widht"}
    unknown = {path for path in setting_paths(read(ROOT / page)) - examples_of_mistakes if not exists(path)}
    assert not unknown, f"{page} names settings that do not exist: {sorted(unknown)}"


def test_the_documentation_names_settings_at_all():
    assert len(setting_paths(read(ROOT / "docs" / "cli.md"))) > 15


@pytest.mark.parametrize("page", [*PAGES, "packages/meltr-core/README.md"])
def test_every_link_between_pages_leads_somewhere(page):
    text = without_code(read(ROOT / page))
    targets = re.findall(r"\]\(([^)#\s]+)?(?:#([\w-]+))?\)", text)
    for name, anchor in targets:
        if name.startswith("http"):
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {name}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{page} links to {name}#{anchor}"


def test_core_names_no_backbone():
    """Core must not know any backbone: not the published ones, and none that an installed adapter registers."""
    source = CORE / "src" / "meltr"
    if not source.is_dir():
        pytest.skip("the source of meltr-core is not beside its tests")
    names = [name for name in discover().backbones if name not in ORDINARY]
    pattern = re.compile(
        "|".join(
            [*map(re.escape, PUBLISHED), *ORDINARY.values(), *(rf"(?<![a-z]){re.escape(n)}(?![a-z])" for n in names)]
        ),
        re.I,
    )
    found = [
        f"{path.relative_to(source)}:{number}: {line.strip()}"
        for path in sorted(source.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(re.sub("hf (download|auth)|HF_TOKEN", "", line))  # names of huggingface_hub
    ]
    assert not found, "\n".join(found)


def test_the_rooms_that_the_architecture_page_names_exist():
    page = read(ROOT / "docs" / "architecture.md")
    table = page[page.index("## Modules of core") : page.index("## Where a new thing goes")]
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|/))`", table)
    core = ROOT / "packages" / "meltr-core" / "src" / "meltr"
    own = ("tests/", "options.py", "output.py", "data.py", "base.py", "trainer.py", "run.py", "built_run.py")
    assert len(named) > 40
    assert [
        name for name in named if not (core / name).exists() and not name.startswith(own) and name not in INSIDE
    ] == []
    rooms = {path.name for path in core.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert rooms <= {name.rstrip("/").split("/")[0] for name in named}


INSIDE = ("schemes/", "estimators/")
"""Folders that the page names in the row of the room that they are in."""


def test_the_example_of_the_diagnosis_page_runs():
    (example,) = python_blocks(read(ROOT / "docs/diagnose.md"))
    names: dict[str, Any] = {}
    exec(compile(example.replace("steps=40", "steps=4, branches=2, looks=2"), "diagnose.md", "exec"), names)
    assert names["found"]["copy"].verdict


def test_the_hit_rate_of_the_diagnosis_page_is_made_of_its_record():
    record = HitRate.load(ROOT / "docs/results/diagnose.json")
    assert record.markdown().strip() in read(ROOT / "docs/diagnose.md")
    assert set(record.found) <= {bed for bed, _ in TRUTHS}
    assert record.seeds[0] >= 12
    assert len(record.seeds) == 20


@pytest.mark.parametrize(("name", "block"), [("helps.json", ""), ("helps_real.json", "#real")])
def test_the_tables_of_results_are_made_of_their_records(tmp_path, name, block):
    record, page = ROOT / "docs/results" / name, tmp_path / "page.md"
    published = read(ROOT / "docs/results.md")
    assert call("helps", "--json", record, "--show", "--markdown", f"{page}{block}").exit_code == 0
    made = page.read_text(encoding="utf-8").strip()
    assert made in published

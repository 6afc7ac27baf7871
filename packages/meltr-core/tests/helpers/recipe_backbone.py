"""A package with the toy backbone and recipes in files: two rows of a table 3, one of a table 9, and a sweep."""

from __future__ import annotations

from pathlib import Path

import yaml

from places import TOY

PACKAGE = "package_with_recipes"

_ROW = {
    "summary": "A row.",
    "task": "classification",
    "dataset": "rings",
    "settings": {"bilevel.gamma": 0.5},
    "full": {"train.epochs": 7, "train.lr": 0.01},
    "miniature": {"train.max_steps": 4, "train.lr": 0.02},
    "hardware": "1 GPU",
    "hours": "unknown",
    "status": "parity",
}
_PAPER = {"table": 3, "place": 2, "part": "Rings", "row": "toy & MELTR_1", "figures": {"top1": 51.7, "top5": "unknown"}}

RECIPES = {
    "table3/rings": {**_ROW, "paper": _PAPER},
    "table3/rings-baseline": {
        **_ROW,
        "settings": {"combiner": "fixed", "combiner_options.weights": [1, 0.5, 0.25]},
        "paper": {**_PAPER, "place": 1, "row": "toy"},
    },
    "table9/gamma-1": {
        **_ROW,
        "settings": {"bilevel.gamma": 1.0},
        "files": {"options.weights": "published.bin"},
        "paper": {"table": 9, "place": 1, "part": "Rings", "row": "gamma = 1", "figures": {"top1": 28.6}},
    },
}

_OPTIONS = """

class Options(meltr.specs.Info):
    weights: str | None = None
    shape: str = "ring"
"""

_PRESETS = """presets=(
    meltr.PresetInfo(name="usual", summary="", settings={"train.epochs": 5, "train.batch_size": 32}),
    meltr.PresetInfo(name="small", summary="", settings={
        "train.epochs": 1, "train.batch_size": 64, "combiner_options.width": 16, "combiner_options.heads": 2}),
), default_presets={"rings": "usual"}, sample_presets={"rings": "small"}, options=f"{__name__}:Options", """


def write_package(folder: Path, recipes: dict[str, dict[str, object]] | None = None) -> Path:
    """Write the package below `folder`, which must be on the path for imports, and return its plugin file."""
    package = folder / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    for name, content in (RECIPES if recipes is None else recipes).items():
        path = package / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    sweep = {"grid": {"recipe": ["table3/rings-baseline", "table3/rings"]}, "seeds": [0, 1]}
    (package / "recipes" / "sweeps").mkdir()
    (package / "recipes" / "sweeps" / "table3.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    code = TOY.read_text(encoding="utf-8").replace("import meltr\n", f"import meltr\nimport meltr.specs\n{_OPTIONS}", 1)
    code = code.replace("tasks=(task,))]", f'tasks=(task,), {_PRESETS}recipes="{PACKAGE}:recipes")]')
    plugin = package / "plugin.py"
    plugin.write_text(code, encoding="utf-8")
    return plugin

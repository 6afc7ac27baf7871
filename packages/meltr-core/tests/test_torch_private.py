"""The private names of torch: each still exists, and no module but one uses them."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import meltr
from meltr import torch_private

CORE = Path(meltr.__file__).parent
PACKAGES = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", torch_private.NAMES)
def test_torch_still_has(name):
    module, parts = name, []
    found = None
    while found is None:
        module, _, last = module.rpartition(".")
        parts.insert(0, last)
        assert module, f"torch {torch.__version__} has no module of {name}"
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
    for part in parts:
        use = torch_private.NAMES[name]
        there = hasattr(found, part) or part in getattr(
            found, "__annotations__", {}
        )  # instances have the annotated ones
        assert there, f"torch {torch.__version__} has no {name} any more; meltr needs it for {use}"
        found = getattr(found, part, None)


def private_uses(path: Path) -> list[str]:
    """Return where a module names something private of torch, as ``line: name``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if not re.fullmatch(r"[\w.]+", name):
                continue  # a call or an index on the way: the parts of the chain are seen on their own
            parts = name.split(".")
            private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if (parts[0] in ("torch", "nn") and private) or parts[-1] in ("_version", "_overloadpacket"):
                found.append(f"{path.name}:{node.lineno}: {name}")
    return found


def test_no_other_module_names_something_private_of_torch():
    files = {*CORE.rglob("*.py"), *PACKAGES.glob("*/src/**/*.py")} - {CORE / "torch_private.py"}
    uses = [use for path in sorted(files) for use in private_uses(path)]
    assert not uses, "\n".join(uses)
    assert private_uses(CORE / "torch_private.py")


def test_operations_on_lists_are_those_on_each_tensor():
    def made() -> list[torch.Tensor]:
        return [torch.tensor([1.0, 4.0]), torch.tensor([[9.0]])]

    for change, expected in (
        (lambda a, b: torch_private.add_each(a, b), [[2.0, 8.0], [[18.0]]]),
        (lambda a, b: torch_private.add_each(a, 0.5), [[1.5, 4.5], [[9.5]]]),
        (lambda a, b: torch_private.subtract_each(a, b), [[0.0, 0.0], [[0.0]]]),
        (lambda a, b: torch_private.scale_each(a, 2.0), [[2.0, 8.0], [[18.0]]]),
        (lambda a, b: torch_private.copy_each(a, [-each for each in b]), [[-1.0, -4.0], [[-9.0]]]),
        (lambda a, b: torch_private.interpolate_each(a, [3 * each for each in b], 0.5), [[2.0, 8.0], [[18.0]]]),
        (lambda a, b: torch_private.add_products_each(a, b, b, 2.0), [[3.0, 36.0], [[171.0]]]),
        (lambda a, b: torch_private.add_quotients_each(a, b, b, -2.0), [[-1.0, 2.0], [[7.0]]]),
    ):
        tensors = made()
        change(tensors, made())
        assert [each.tolist() for each in tensors] == expected
    assert [each.tolist() for each in torch_private.roots_of_each(made())] == [[1.0, 2.0], [[3.0]]]


def test_what_torch_tells_of_tensors_and_graphs():
    weight = torch.ones(2, requires_grad=True)
    before = torch_private.version(weight)
    with torch_private.preserved_versions([weight]), torch.no_grad():
        weight.mul_(1)
    assert torch_private.version(weight) == before
    with torch_private.preserved_versions([]), torch.no_grad():
        weight.mul_(1)
    assert torch_private.version(weight) == before + 1
    seen = []
    weight.register_hook(lambda gradient: seen.append(torch_private.backward_number()))
    weight.sum().backward()
    weight.sum().backward()
    assert len(set(seen)) == 2
    assert torch_private.backward_number() == -1
    assert not torch_private.saved_tensors_are_hooked()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert torch_private.saved_tensors_are_hooked()


def test_compiled_modules_are_recognised():
    plain, own = nn.Linear(1, 1), nn.Linear(1, 1)
    assert not torch_private.is_compiled(plain)
    assert torch_private.is_compiled(torch.compile(plain))
    assert torch_private.without_compiler(torch.compile(plain)) is torch_private.without_compiler(plain) is plain
    own.compile()
    assert torch_private.is_compiled(own)


def test_trees_of_tensors():
    batch = {"a": torch.ones(2), "b": [torch.zeros(1), "text"]}
    assert len(torch_private.tree_leaves(batch)) == 3
    doubled = torch_private.map_tensors(lambda tensor: tensor.double(), batch)
    assert doubled["a"].dtype == doubled["b"][0].dtype == torch.float64
    assert doubled["b"][1] == "text"

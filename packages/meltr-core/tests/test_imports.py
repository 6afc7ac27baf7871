"""The import graph of core: no cycle between files or rooms, and a ground floor that stands on nothing above it."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import meltr

ROOT = Path(meltr.__file__).parent

GROUND_FLOOR = {
    "autograd",
    "shards",
    "version",
    "errors",
    "limits",
    "file_search",
    "moved",
    "files",
    "seeding",
    "devices",
    "environment",
    "progress",
    "torch_private",
}
"""Rooms that every other room may import; they import only each other."""

Graph = Mapping[str, set[str]]


def module_files() -> dict[str, Path]:
    """Return every module of core with its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("meltr", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST, *, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports below `node`, those inside functions too.

    Args:
        node: What to walk.
        types: Also those that only a type checker sees, below ``if TYPE_CHECKING``.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif types or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child, types=types)


def import_graph(*, types: bool) -> dict[str, set[str]]:
    """Return the modules of core that each module of core imports."""
    files = module_files()
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        imported: set[str] = set()
        for each in statements(ast.parse(path.read_text(encoding="utf-8")), types=types):
            if isinstance(each, ast.Import):
                imported |= {alias.name for alias in each.names}
            else:
                members = {alias.name: f"{each.module}.{alias.name}" for alias in each.names}
                imported |= {member if member in files else str(each.module) for member in members.values()}
        graph[name] = (imported & files.keys()) - {name}
    return graph


def room(module: str) -> str:
    """Return the room of a module: the first name below ``meltr``; ``meltr`` itself is the door."""
    return module.split(".")[1] if "." in module else module


def room_graph(graph: Graph) -> dict[str, set[str]]:
    """Return the rooms that each room imports. The door imports every room and is not one."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        if module != "meltr":
            rooms.setdefault(room(module), set()).update(room(each) for each in imported)
    return {name: {each for each in imported if each != name} for name, imported in rooms.items()}


def find_cycle(graph: Graph) -> str:
    """Return a cycle as ``a -> b -> a``; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for imported in sorted(graph.get(name, ())):
            if cycle := visit(imported, [*path, name]):
                return cycle
        done.add(name)
        return []

    return " -> ".join(next((cycle for name in sorted(graph) if (cycle := visit(name, []))), []))


def test_the_search_finds_what_it_looks_for():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == "b -> c -> b"
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ""
    tree = ast.parse("if TYPE_CHECKING:\n    import a\ndef f():\n    import b\n    if x:\n        import c")
    names = [[alias.name for each in statements(tree, types=types) for alias in each.names] for types in (False, True)]
    assert names == [["b", "c"], ["a", "b", "c"]]


def test_files_do_not_import_each_other_in_a_circle():
    """Imports inside functions count; those for type checkers alone do not."""
    assert not (cycle := find_cycle(import_graph(types=False))), cycle


def test_rooms_do_not_import_each_other_in_a_circle():
    """Every import counts, those for type checkers too."""
    graph = import_graph(types=True)
    cycle = find_cycle(room_graph(graph))
    steps = [part for part in cycle.split(" -> ") if part]
    because = [
        f"{module} imports {each}"
        for one, other in itertools.pairwise(steps)
        for module, imported in graph.items()
        for each in sorted(imported)
        if room(module) == one and room(each) == other and module != "meltr"
    ]
    assert not cycle, "\n".join([cycle, *because])


def test_the_ground_floor_stands_on_nothing_above_it():
    rooms = room_graph(import_graph(types=True))
    assert rooms.keys() >= GROUND_FLOOR
    above = {name: rooms[name] - GROUND_FLOOR for name in GROUND_FLOOR}
    assert not any(above.values()), above


def test_nothing_inside_comes_in_by_the_front_door():
    """``import meltr`` is for users: it loads names of all rooms on first use, so a room that used it would be in a
    circle that no import statement shows."""
    assert not [name for name, imported in import_graph(types=True).items() if "meltr" in imported]

"""Figures of the code base, with limits that a test enforces.

    python -m tests.house

Prints the number of files, their median and longest length, the functions' median and longest length, the modules that
exactly one other module imports (each may be a part of that one), and import circles. `tests/`, `benchmarks/` and files
that are not Python do not count.
"""

from __future__ import annotations

import ast
import graphlib
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_SINGLE_IMPORTER = 400, 61, 25

Graph = dict[str, set[str]]
"""Module -> modules that it imports."""

_ENTRY = re.compile(r"(components(?:\.\w+)+):\w+")


def files() -> list[Path]:
    """Returns the Python files of the project."""
    return sorted(path for folder in ("pipeline", "components") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path, tree: ast.Module | None = None) -> list[str]:
    """Returns the dotted names of everything that a file imports, inside functions too, but not for types only."""
    tree = tree or ast.parse(path.read_text())
    free = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for inner in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in free:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def import_graph() -> Graph:
    """Returns which module of the project imports which, packages by the name of their folder."""
    paths = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for path in files()
    }
    graph: Graph = {}
    for module, path in paths.items():
        names = {name if name in paths else name.rpartition(".")[0] for name in imported(path)}
        graph[module] = {name for name in names if name in paths and name != module}
    return graph


def circle_in(graph: Graph) -> list[str]:
    """Returns one circle of a graph as a list of its nodes; empty if there is none."""
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def single_importers(graph: Graph, packages: set[str], entries: set[str]) -> dict[str, str]:
    """Returns module -> its only importer.

    A package's `__init__` that passes names on and a `__main__` that calls a function do not count as importers, and
    are not counted as modules.

    Args:
        packages: names of the packages.
        entries: modules that are loaded by their name in a text, which counts as one more importer.
    """
    importers: dict[str, list[str]] = {module: [] for module in graph}
    for module, names in graph.items():
        if module not in packages and not module.endswith("__main__"):
            for name in names:
                importers[name].append(module)
    modules = [name for name in graph if name not in packages and not name.endswith("__main__")]
    counted = {name: importers[name] + ["by name"] * (name in entries) for name in modules}
    return {name: found[0] for name, found in counted.items() if len(found) == 1 and found != ["by name"]}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yields (name, length in lines) of every function in a file, without decorators."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


@dataclass(frozen=True)
class Figures:
    """The figures of the code base: lengths in lines by name, module -> only importer, one circle if there is any."""

    files: dict[str, int]
    functions: dict[str, int]
    single: dict[str, str]
    circle: list[str]

    @classmethod
    def of_project(cls) -> Figures:
        """Measures the project."""
        graph, paths = import_graph(), files()
        packages = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in paths}
        entries = {name for path in paths for name in _ENTRY.findall(path.read_text())}
        return cls(
            {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in paths},
            {name: length for path in paths for name, length in functions(path)},
            single_importers(graph, packages, entries),
            circle_in(graph),
        )

    def problems(self) -> list[str]:
        """Returns a line for each limit that is exceeded."""
        found = [
            f"{name} has {n} lines, more than {MOST_FILE_LINES}"
            for name, n in self.files.items()
            if n > MOST_FILE_LINES
        ]
        found += [
            f"{name} has {n} lines, more than {MOST_FUNCTION_LINES}"
            for name, n in self.functions.items()
            if n > MOST_FUNCTION_LINES
        ]
        if len(self.single) > MOST_SINGLE_IMPORTER:
            found.append(f"{len(self.single)} modules have exactly one importer, more than {MOST_SINGLE_IMPORTER}")
        return found + ([f"import circle: {' -> '.join(self.circle)}"] if self.circle else [])

    def report(self) -> str:
        """Returns the figures as text."""
        lines = []
        for what, lengths in (("files", self.files), ("functions", self.functions)):
            longest = max(lengths, key=lambda name: lengths[name])
            median = statistics.median(lengths.values())
            lines.append(f"{what}: {len(lengths)}, median {median:g} lines, longest {lengths[longest]} ({longest})")
        lines.append(f"modules with exactly one importer: {len(self.single)}")
        lines += [f"  {module}  <-  {importer}" for module, importer in sorted(self.single.items())]
        return "\n".join([*lines, f"import circle: {' -> '.join(self.circle) or 'none'}"])


if __name__ == "__main__":
    print(Figures.of_project().report())

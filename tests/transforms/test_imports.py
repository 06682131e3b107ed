"""The modules of the transforms import each other in one direction, also within functions and for type checkers."""

import ast
import graphlib
from pathlib import Path

import watnn.transforms

FOLDER = Path(watnn.transforms.__file__).parent
PREFIX = "watnn.transforms."


def imported(path):
    """The names of the modules beside it that a module imports, anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PREFIX):
            yield node.module.removeprefix(PREFIX)
        elif isinstance(node, ast.Import):
            yield from (one.name.removeprefix(PREFIX) for one in node.names if one.name.startswith(PREFIX))


def test_there_is_no_cycle():
    graph = {path.stem: set(imported(path)) for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    assert "plotting" in graph["base"]
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the cycle

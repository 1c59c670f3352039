"""The rooms of the house: imports run down its floors, never up and never in a circle.

Imports are read from the source, those inside functions too; only those for type checkers (`if TYPE_CHECKING:`) do not
count. A new module at the root of the package gets its place in `FLOORS`.
"""

import ast
import functools
import graphlib
import pathlib

import pytest

import robust_vit

ROOT = pathlib.Path(robust_vit.__file__).parent
# From the ground up. "" is `robust_vit/__init__.py` itself, whose other names are imported when asked for.
FLOORS = {
    "ground": ("", "errors", "guard", "host_call", "lazy", "locks", "pixels", "provenance", "threat", "typing"),
    "programs": ("program", "randomness"),
    "mathematics": ("attacks", "models", "objectives", "physical"),
    "surroundings": ("config", "data", "hosts", "parallel", "recipes"),
    "measurement": ("analysis", "evaluation"),
    "training": ("training",),
    "planning": ("planning",),
    "classifier": ("batching", "classifier", "foreign", "loading", "subject"),
    "commands": (
        "commands",
        "compare",
        "convert",
        "doctor",
        "evaluate",
        "explain",
        "label",
        "leaderboard",
        "main",
        "plan",
        "models.__main__",
        "sweep",
        "preview",
    ),
}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS.values()) for room in rooms}


class _Imports(ast.NodeVisitor):
    """Collects the dotted names that a module imports from the package."""

    def __init__(self):
        self.found: set[str] = set()

    def visit_If(self, node):
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self.found |= {f"{node.module}.{alias.name}" for alias in node.names}


@functools.cache
def imports() -> dict[str, set[str]]:
    """{module: the modules of the package that it imports}, without the package's own name: `attacks.pgd`, ""."""
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py")}
    names = {path: name.removesuffix("__init__").removesuffix(".") for path, name in names.items()}
    names = {path: name for path, name in names.items() if not name.startswith("_configs")}

    def module_of(name: str) -> str | None:
        """The module that `import name` or `from ... import name` reads: itself, or what holds that object."""
        if name.split(".")[0] != "robust_vit":
            return None
        inside = name.partition(".")[2]
        return inside if inside in names.values() else inside.rpartition(".")[0]

    def of(path: pathlib.Path) -> set[str]:
        visitor = _Imports()
        visitor.visit(ast.parse(path.read_text()))
        return {module for name in visitor.found if (module := module_of(name)) is not None}

    return {name: of(path) - {name} for path, name in names.items()}


def room(module: str) -> str:
    """The room of a module: its package at the root, or itself."""
    return module if module in FLOOR_OF else module.split(".")[0]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in a graph, [] where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
        return []
    except graphlib.CycleError as error:
        return error.args[1]


def test_every_room_has_its_floor():
    assert {room(module) for module in imports()} - set(FLOOR_OF) == set(), "give it a place in FLOORS"


def test_no_import_runs_up():
    up = [
        f"{module or '__init__'} imports {other}"
        for module, others in imports().items()
        for other in others
        if FLOOR_OF[room(other)] > FLOOR_OF[room(module)]
    ]
    assert not up


def test_no_circle_of_modules_or_of_rooms():
    assert not circle(imports())
    rooms: dict[str, set[str]] = {}
    for module, others in imports().items():
        rooms.setdefault(room(module), set()).update({room(other) for other in others} - {room(module)})
    assert not circle(rooms)


@pytest.mark.parametrize("core", FLOORS["mathematics"])
def test_the_mathematics_know_no_configuration_data_or_run(core):
    used = {room(other) for module, others in imports().items() if room(module) == core for other in others}
    assert used <= {*FLOORS["ground"], *FLOORS["programs"], *FLOORS["mathematics"]}


def test_the_configuration_knows_only_what_everybody_knows():
    assert imports()["config"] <= set(FLOORS["ground"])


def test_the_reader_of_imports_sees_them():
    assert "training.loop" in imports()["main"] and "guard" in imports()[""]
    assert "attacks.norms" in imports()["attacks.pgd"] and "typing" in imports()["attacks.pgd"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b"}, "b": set()})

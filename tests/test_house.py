"""Which room imports which: arrows point down only."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import faceprior

ROOT = Path(faceprior.__file__).parent
ROOMS = [  # from the ground upwards; those of one line do not know each other
    {"errors"},
    {"images", "networks", "devices", "cores", "operators", "settings", "hub"},
    {"priors", "faces", "degradations", "storage"},
    {"corrector", "sampling", "evaluation"},
    {"doubt", "methods"},
    {"training", "pipeline"},
    {"diffusers", "photographs"},
    {"clips"},
    {"folders"},
    {"benchmark", "scale"},
    {"app"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imports():
    """(module, imported module) of every import at run time, within functions too."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("faceprior", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in typing_only:
                continue
            if (node.module or "").startswith("faceprior."):
                folder = ROOT.joinpath(*node.module.split(".")[1:])
                for name in (alias.name for alias in node.names):
                    inside = (folder / f"{name}.py").is_file() or (folder / name).is_dir()
                    yield module, f"{node.module}.{name}" if inside else node.module


def room(module):
    return module.split(".")[1]


def test_no_room_imports_one_above_it_or_beside_it():
    inner = [(module, other) for module, other in imports() if module != "faceprior"]
    assert len(inner) > 300
    up = [
        f"{module} → {other}"
        for module, other in inner
        if room(module) != room(other)
        if FLOOR[room(module)] <= FLOOR[room(other)]
    ]
    assert up == []


def test_no_module_imports_itself_through_others():
    below = {}
    for module, other in imports():
        below.setdefault(module, set()).add(other)
    for module, others in below.items():
        others.discard(module)  # a package's own name for what is in it
    list(TopologicalSorter(below).static_order())  # raises CycleError, which names them

"""Proves that imports follow the arrows of the design: searchseg alone, hub and training meet on disk."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("page", "searchseg", "training", "hub")
MAY_IMPORT = {
    "searchseg": set(),
    "training": {"searchseg", "hub"},
    "hub": {"searchseg"},
    "page": {"searchseg", "training", "hub"},
}
# the library is used without the page and without the workshop, so their packages stay out of it
NOT_IN_SEARCHSEG = {"gradio", "datasets", "argparse", "accelerate", "timm", "torchvision", "matplotlib"}
# the leaves first: a module of the library imports only modules to its left
ORDER = (
    ("genotype", "images", "loss", "metric", "faults"),
    ("config", "task", "operations", "drawing", "derivation", "download", "fold"),
    ("kernels", "replay"),
    ("mixed", "baselines", "onnx"),
    ("cell",),
    ("network",),
    ("cost", "fast", "pretrained"),
    ("portrait",),
    ("segmenter",),
    ("segment",),
    ("__init__",),
)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    return [ROOT / "app.py", *found] if room == "page" else found  # app.py puts the page together


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_along_the_arrows(room):
    assert files(room), f"{room} has no module"
    for path in files(room):
        roots = {name.split(".")[0] for name in imports(path)} & {*ROOMS, "app"} - {room}
        assert roots <= MAY_IMPORT[room], f"{path.name} imports {roots - MAY_IMPORT[room]}"


def test_the_library_needs_neither_page_nor_workshop():
    for path in files("searchseg"):
        # the one command of the library, for people who have installed nothing but it
        # the command for files and folders, and the encoders of the baselines, imported when one is built
        allowed = {"segment.py": {"argparse"}, "encoder.py": {"timm"}}.get(path.name, set())
        assert not {name.split(".")[0] for name in imports(path)} & NOT_IN_SEARCHSEG - allowed, path.name


def test_modules_of_the_library_point_to_the_leaves():
    rank = {name: i for i, names in enumerate(ORDER) for name in names}
    library = ROOT / "searchseg"
    seen = set()
    for path in files("searchseg"):
        here = path.relative_to(library).parts[0].removesuffix(".py")  # a package counts as one module
        seen.add(here)
        for name in imports(path):
            room, _, module = name.partition(".")
            module = module.split(".")[0]
            if room == "searchseg" and module in rank and module != here and here != "__init__":
                assert rank[module] < rank[here], f"{path.name} imports {module}"
    assert seen == set(rank), "a new module needs its place in ORDER"

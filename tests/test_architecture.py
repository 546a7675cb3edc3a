"""Who may import whom. A module imports only from rows above its own, never from its own row; its own room is home."""

import ast
from pathlib import Path

ROWS = [
    {"errors", "axes", "counters", "files"},
    {"signals"},
    {"rows", "ragged", "padding"},
    {"data", "models", "labels"},
    {"objectives", "teachers"},
    {"training", "evaluation", "export"},
    {"studies"},
    {"report", "config"},
    {"cli"},
]
SOURCE = Path(__file__).parents[1] / "src" / "tutelage"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(module: Path) -> str:
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


def row_of(room: str) -> int:
    return next(index for index, row in enumerate(ROWS) if room in row)


def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


def imported_rooms(tree: ast.Module) -> set[str]:
    """Rooms of tutelage that a module imports from, anywhere in it, type-checking blocks included."""
    rooms: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be searched for"
            names = [node.module] if node.module != "tutelage" else [f"tutelage.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "tutelage" and len(parts) > 1 and parts[1] != "__version__":
                rooms.add(parts[1])
    return rooms


def test_imports_only_from_rows_above() -> None:
    """Without this, the first convenient import from below makes a circle, and the rooms can no longer be read alone."""
    breaches = [
        f"{module.relative_to(SOURCE)} imports {room}, which is not in a row above it"
        for module in MODULES
        for room in imported_rooms(parsed(module)) - {room_of(module)}
        if row_of(room) >= row_of(room_of(module))
    ]
    assert not breaches


def test_every_room_has_a_row() -> None:
    """A new folder without a row would be checked by nobody."""
    assert {room_of(module) for module in MODULES} <= set().union(*ROWS)


def test_the_walk_finds_each_way_of_importing() -> None:
    """If the walk missed a way of importing, the table above would hold nothing."""
    text = "import tutelage.a.b\nfrom tutelage.c import d\nfrom tutelage import e, __version__\ndef f():\n    from tutelage.g import h\n"
    assert imported_rooms(ast.parse(text)) == {"a", "c", "e", "g"}


def test_no_class_inherits_from_a_concrete_class_of_ours() -> None:
    """A subclass of a concrete class changes its parent from afar; only abstract bases, protocols and errors are bases."""
    classes: dict[str, tuple[ast.ClassDef, Path]] = {}
    for module in MODULES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = (node, module)
    for node, module in classes.values():
        if room_of(module) == "errors":
            continue
        for base in node.bases:
            name = base.id if isinstance(base, ast.Name) else None
            if name in classes:
                parent = ast.dump(classes[name][0])
                markers = ("Protocol", "ABC", "abstractmethod", "'BaseModel'", "TypedDict", "NamedTuple")
                assert any(word in parent for word in markers), f"{node.name} inherits from the concrete {name}"

"""The user's own Python files: the one way a config reaches code."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.errors import ConfigError

#: Of the modules that files imported from beside them, the folder that each was found in.
_found_in: dict[str, Path] = {}


def import_from_file(reference: str, folder: Path) -> Any:
    """The object that ``"file.py:name"`` names, the one way a config reaches code.

    Raises:
        ConfigError: the reference is malformed, or the file or the name is not there (the nearest name is suggested).
    """
    file_name, separator, name = reference.rpartition(":")
    if not separator or not file_name.endswith(".py") or not name.isidentifier():
        raise ConfigError(
            f"got {reference!r}, expected 'file.py:function', a Python file beside the config and a name in it"
        )
    path = (folder / file_name).resolve()
    if not path.is_file():
        nearby = sorted(found.name for found in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{reference!r}: there is no file {path}" + (f"; beside it: {', '.join(nearby)}" if nearby else "")
        )
    module = _import_file(path)
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(
            f"{reference!r}: {path.name} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return getattr(module, name)


def imported_beside(path: Path) -> list[Path]:
    """The files of its folder that a Python file imports by their names, and those that these import, in order.

    What the text says is read, and nothing is run: an import behind a condition counts too.
    """
    found: set[Path] = set()
    unread = [path]
    while unread:
        for name in _names_imported(unread.pop()):
            package = path.parent / name
            files = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
            new = {file for file in files if file.is_file()} - found - {path}
            found |= new
            unread += new
    return sorted(found)


def _names_imported(path: Path) -> set[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # whoever loads it says so
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _import_file(path: Path) -> ModuleType:
    # Named after path and contents: an edited file is read anew, and two folders' models.py do not meet.
    text = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + text).hexdigest()[:16]
    module_name = f"tutelage_user_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with _beside(path.parent):
            # Not by the loader: its bytecode cache takes a file edited within the second, to the same length, for unchanged.
            exec(compile(text, str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module_name]
        lacking = isinstance(error, ModuleNotFoundError)
        hint = f"; install it, or put its file into {path.parent}, where it is found by its name" if lacking else ""
        raise ConfigError(f"{path} could not be imported: {type(error).__name__}: {error}{hint}") from error
    return module


@contextmanager
def _beside(folder: Path) -> Generator[None]:
    """Let a file import those in its folder by their names while it is loaded, as a script may."""
    # another folder's are forgotten: helpers.py is everybody's name too
    for name in [name for name, home in _found_in.items() if home != folder]:
        sys.modules.pop(name, None)
        del _found_in[name]
    known = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        own = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
        new = [name for name in sys.modules.keys() - known if name.partition(".")[0] in own - known]
        _found_in.update(dict.fromkeys(new, folder))

"""The front door: few names, each importable and documented, and nothing heavy behind it until it is needed."""

import inspect
import subprocess
import sys

import pytest

import tutelage

NAMES = [name for name in tutelage.__all__ if name != "__version__"]
HEAVY = ("torch", "transformers", "accelerate", "sklearn", "scipy", "numpy", "ruamel", "datasets", "jinja2")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import tutelage",
        "import tutelage; dir(tutelage); tutelage.TutelageError",
        "import tutelage.cli",
        "import sys; sys.argv = ['tutelage', '--help']\nfrom tutelage.cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['tutelage', 'run', '--help']\nfrom tutelage.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_the_door_opens_without_torch(statement: str) -> None:
    """`import tutelage` in 0.3 s and `--help` in 0.5 s hang on this: torch alone takes seconds."""
    assert not loaded_after(statement) & set(HEAVY)


def test_a_config_is_read_without_torch() -> None:
    """A slip of the pen is told at once, and not after the seconds that torch takes to load."""
    assert "torch" not in loaded_after("from tutelage.config import load_config")


def test_the_page_is_made_without_torch() -> None:
    assert "torch" not in loaded_after("from tutelage import write_report")


def test_there_are_few_names_and_all_are_listed() -> None:
    assert len(tutelage.__all__) <= 20
    assert len(set(tutelage.__all__)) == len(tutelage.__all__)
    assert set(NAMES) == set(tutelage._HOMES)
    assert dir(tutelage) == sorted(tutelage.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(tutelage, name)
    assert value.__module__.startswith(tutelage._HOMES[name])
    assert len(inspect.getdoc(value) or "") > 40
    if inspect.isclass(value):
        assert value.__doc__ is not None, "its own words, not its base's"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Teecher'"):
        _ = tutelage.Teecher
    assert not hasattr(tutelage, "torch")

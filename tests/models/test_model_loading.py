"""Loading: from a file beside the config, a hub folder, a weights file."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tutelage.errors import ConfigError, ModelError
from tutelage.models import ModelSource, import_from_file, load_model

MODELS = """
import torch
from torch import nn
DRAWN_AT_IMPORT = torch.rand(5)
NOT_CALLABLE = 3

def build_student(width: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, classes))

def build_number():
    return 7

def build_broken():
    return nn.Linear("a", 2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def _same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_python_source_with_arguments(folder: Path):
    """Arguments reach the builder; a mapping is as good as a ModelSource."""
    source = ModelSource("models.py:build_student", {"width": 6}, folder=folder)
    model: Any = load_model(source)
    assert model[0].out_features == 6
    again = load_model({"python": "models.py:build_student", "arguments": {"width": 6}, "folder": str(folder)})
    assert _same(model, again)


def test_initialisation_is_seeded_and_nothing_else_is(folder: Path):
    """The first load also imports the file; were its draws counted in, the second arm would begin from other weights."""
    source = ModelSource("models.py:build_student", folder=folder)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = load_model(source, seed=1), load_model(source, seed=1), load_model(source, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert _same(first, second)
    assert not _same(first, other)
    torch.manual_seed(12)
    assert _same(load_model(source, seed=1), first)


def test_files_of_one_name_do_not_meet(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """``models.py`` is everybody's name for it: cached by name, the second config would run the first one's code."""
    other = tmp_path_factory.mktemp("other")
    (other / "models.py").write_text("VALUE = 1\n")
    assert import_from_file("models.py:VALUE", other) == 1
    assert import_from_file("models.py:NOT_CALLABLE", folder) == 3
    (other / "models.py").write_text("VALUE = 2\n")
    assert import_from_file("models.py:VALUE", other) == 2


def test_a_file_may_import_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What two files share stands in a third; of two folders, each must meet its own and not the one that was read first."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    for number, folder in enumerate((tmp_path / "one", tmp_path / "two")):
        (folder / "sizes").mkdir(parents=True)
        (folder / "sizes" / "__init__.py").write_text("")
        (folder / "sizes" / "widths.py").write_text(f"WIDTH = {number}\n")
        (folder / "shared_words.py").write_text(f"VALUE = {number}\n")
        (folder / "models.py").write_text("from shared_words import VALUE\nfrom sizes.widths import WIDTH\n")
        (folder / "data.py").write_text("import shared_words\n")
        assert import_from_file("models.py:VALUE", folder) == number
        assert import_from_file("models.py:WIDTH", folder) == number
        assert import_from_file("data.py:shared_words", folder) is sys.modules["shared_words"]
    assert import_from_file("models.py:VALUE", tmp_path / "one") == 0
    assert sys.path == before
    (tmp_path / "one" / "lost.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(
        ConfigError, match=r"No module named 'nowhere_to_be_found'; install it, or put its file into .*one"
    ):
        import_from_file("lost.py:x", tmp_path / "one")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"python": "model.py:build_student"}, "there is no file .*beside it: .*models.py"),
        ({"python": "models.py:build_studnet"}, "did you mean 'build_student'"),
        ({"python": "models.py"}, "expected 'file.py:function'"),
        ({"python": "models:build_student"}, "expected 'file.py:function'"),
        ({"python": "models.py:os.system"}, "expected 'file.py:function'"),
        ({"python": "models.py:NOT_CALLABLE"}, "is a int, expected a function"),
        ({"python": "models.py:build_number"}, "returned a int"),
        (
            {"python": "models.py:build_student", "arguments": {"widht": 3}},
            r"unexpected keyword .*signature is \(width",
        ),
        ({"python": "broken.py:build"}, "could not be imported: SyntaxError"),
        ({"python": "raises.py:build"}, "could not be imported: ZeroDivisionError"),
        ({}, "exactly one of"),
        ({"python": "models.py:build_student", "hub": "x"}, "exactly one of"),
        ({"checkpoint": "w.safetensors"}, "holds weights, not the code"),
        ({"python": "models.py:build_student", "revision": "abc"}, "pins a hub model"),
        ({"pyhton": "models.py:build_student"}, "did you mean 'python'"),
        ({"python": "models.py:build_student", "checkpoint": "nowhere.safetensors"}, "does not exist"),
    ],
)
def test_mistakes_of_a_config(folder: Path, keys: dict[str, Any], message: str):
    """Each is one message that names the way out."""
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=message):
        load_model({**keys, "folder": folder})


def test_a_mistake_inside_the_builder_is_not_called_a_wrong_argument(folder: Path):
    """A TypeError of the user's own code reported as "could not be called" sends them to the wrong line."""
    with pytest.raises(TypeError, match="str"):
        load_model(ModelSource("models.py:build_broken", folder=folder))


def _checkpoint(folder: Path, name: str = "w.safetensors", **source: Any) -> nn.Module:
    return load_model(ModelSource("models.py:build_student", checkpoint=name, folder=folder, **source))


def test_checkpoint(folder: Path):
    """The weights are the file's, to the bit, whatever the seed."""
    model = load_model(ModelSource("models.py:build_student", folder=folder), seed=5)
    save_file(model.state_dict(), folder / "w.safetensors")
    assert _same(_checkpoint(folder), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("3.bias"), r"1 are missing \(3.bias\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 are unknown to it \(extra\)"),
        (lambda state: state.update({"0.weight": torch.zeros(5, 2)}), "size mismatch for 0.weight"),
        (
            lambda state: [state.update({"m." + k: state.pop(k)}) for k in list(state)],
            "4 are missing .* and 4 are unknown",
        ),
    ],
)
def test_checkpoint_that_does_not_fit(folder: Path, change: Any, message: str):
    """Skipped without a word, one missing weight leaves a teacher that is partly random and sure of itself."""
    state = load_model(ModelSource("models.py:build_student", folder=folder)).state_dict()
    change(state)
    save_file(state, folder / "w.safetensors")
    with pytest.raises(ModelError, match=message):
        _checkpoint(folder)


def test_truncated_checkpoint(folder: Path):
    """A copy that broke off is an error, not a shorter model."""
    path = folder / "w.safetensors"
    save_file(load_model(ModelSource("models.py:build_student", folder=folder)).state_dict(), path)
    for content in (path.read_bytes()[:-7], path.read_bytes()[:5], b""):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cut short"):
            _checkpoint(folder)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.PT", "w.tar", "w"])
def test_pickles_are_refused_unless_allowed_by_name(folder: Path, name: str):
    """A pickle runs code when it is read, under whatever suffix it comes."""
    model = load_model(ModelSource("models.py:build_student", folder=folder), seed=3)
    torch.save(model.state_dict(), folder / name)
    with pytest.raises(ModelError, match="allow_pickle: true"):
        _checkpoint(folder, name)
    assert _same(_checkpoint(folder, name, allow_pickle=True), model)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / name)
    assert _same(_checkpoint(folder, name, allow_pickle=True), model)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_pickles_that_are_no_weights(folder: Path):
    """Even an allowed pickle is read for tensors alone; anything else is an error and is not run."""
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    (folder / "evil.pt").write_bytes(pickle.dumps(_Evil(folder / "was-run")))
    (folder / "damaged.pt").write_bytes((folder / "module.pt").read_bytes()[:100])
    torch.save([torch.zeros(2)], folder / "list.pt")
    for name in ("module.pt", "evil.pt", "damaged.pt", "list.pt"):
        with pytest.raises(ModelError, match="state dict of tensors"):
            _checkpoint(folder, name, allow_pickle=True)
    assert not (folder / "was-run").exists()


def test_a_pickle_named_safetensors_is_not_unpickled(folder: Path):
    """The name is the user's word for what it is; the reader believes the bytes."""
    torch.save(load_model(ModelSource("models.py:build_student", folder=folder)).state_dict(), folder / "w.safetensors")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        _checkpoint(folder)


def test_tied_weights_stored_once_or_twice(tmp_path: Path):
    """Of tied tensors a file may hold one name or both; neither is a misfit, and a lack of both is."""
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))\n"
        "    model[1].weight = model[0].weight\n"
        "    return model\n"
    )
    source = ModelSource("tied.py:build", checkpoint="w.safetensors", folder=tmp_path)
    state = load_model(ModelSource("tied.py:build", folder=tmp_path), seed=9).state_dict()
    clones = {name: values.clone() for name, values in state.items()}
    for left_out in ([], ["0.weight"], ["1.weight"]):
        save_file({k: v for k, v in clones.items() if k not in left_out}, tmp_path / "w.safetensors")
        model: Any = load_model(source)
        assert torch.equal(model[0].weight, state["0.weight"])
        assert model[1].weight is model[0].weight
    save_file({k: v for k, v in clones.items() if k.startswith("2")}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="2 are missing"):
        load_model(source)

"""An artefact is whole or not there, known by its hashes, and trusted in nothing that it names."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import ExportError
from tutelage.export.artefacts import MANIFEST, check_destination, commit, contained, read_artefact, set_aside, staging

FACTS: dict[str, Any] = {
    "tutelage": "0.1.0",
    "format": "onnx",
    "precision": "fp32",
    "model": "model.onnx",
    "model_files": ["model.onnx", "model.onnx.data"],
    "inputs": [{"name": "input", "dtype": "float32", "shape": ("batch", 4)}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ("batch", 2)}],
    "classes": ["a", "b"],
    "temperature": 1.5,
    "run": {"title": "t", "seed": 0},
    "parity": {"why": "off by 3"},
}


def build(staged: Path, model: bytes = b"graph") -> None:
    (staged / "model.onnx").write_bytes(model)
    (staged / "model.onnx.data").write_bytes(b"weights")
    (staged / "README.md").write_text("read me")


def make(out: Path, **changes: Any) -> Path:
    with staging(out) as staged:
        build(staged)
        commit(staged, out, {**FACTS, **changes})
    return out


def rewritten(folder: Path, **changes: Any) -> None:
    """The manifest with other values, sealed anew, as somebody would who means harm."""
    from tutelage.export import artefacts

    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    del manifest["digest"]
    manifest["digest"] = artefacts._digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """A manifest that lost a field on its way would send the wrong classes or temperature into production."""
    artefact = read_artefact(make(tmp_path / "onnx"))
    assert (artefact.format, artefact.precision, artefact.classes, artefact.temperature) == (
        "onnx",
        "fp32",
        ["a", "b"],
        1.5,
    )
    assert artefact.model == tmp_path / "onnx" / "model.onnx"
    assert artefact.inputs[0].shape == ("batch", 4)
    assert artefact.bytes == len(b"graph") + len(b"weights"), "the README is no part of the model"
    assert set(artefact.manifest["files"]) == {"model.onnx", "model.onnx.data", "README.md"}


def test_a_folder_exists_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    """A crash half way through an export would leave half an artefact where a pipeline picks it up."""
    out = tmp_path / "onnx"

    def cut_off() -> None:
        with staging(out) as staged:
            build(staged)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_gives_way_to_its_successor_whole(tmp_path: Path) -> None:
    """Files of the older one left in the folder would be taken for the newer one's."""
    out = make(tmp_path / "onnx")
    (out / "stray").write_text("from before")
    make(out, temperature=2.0)
    assert read_artefact(out).temperature == 2.0
    assert not (out / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"], "nothing is left beside it"


def test_a_failed_artefact_is_kept_aside_and_refused(tmp_path: Path) -> None:
    """Left under its name, or readable under the other, it would be deployed in spite of its parity."""
    out = make(tmp_path / "onnx")
    with staging(out) as staged:
        build(staged, b"broken")
        aside = set_aside(staged, out, FACTS)
    assert aside == tmp_path / "onnx.failed"
    assert (aside / "model.onnx").read_bytes() == b"broken"
    assert (out / "model.onnx").read_bytes() == b"graph", "the earlier good one is left as it was"
    with pytest.raises(ExportError, match=r"failed when it was exported \(off by 3\)"):
        read_artefact(aside)
    make(out)
    assert not aside.exists(), "a good one ends the failure"


def test_other_peoples_files_are_not_deleted(tmp_path: Path) -> None:
    """--out on the wrong folder would replace it, home folders included."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ExportError, match="no artefact of tutelage"):
        check_destination(tmp_path / "mine")
    (tmp_path / "mine" / MANIFEST).write_text('{"name": "somebody else\'s manifest"}')
    with pytest.raises(ExportError, match="no artefact of tutelage"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(ExportError, match="is a file"):
        check_destination(tmp_path / "mine" / "thesis.tex")


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_file_is_found(tmp_path: Path, damage: str) -> None:
    """One flipped weight answers nearly as before, and nobody would ever know."""
    out = make(tmp_path / "onnx")
    data = out / "model.onnx.data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(b"weighty" if damage == "changed" else b"wei")
    with pytest.raises(ExportError, match=r"model\.onnx\.data"):
        read_artefact(out)


def test_a_manifest_that_was_edited_is_found(tmp_path: Path) -> None:
    """Two class names swapped by hand would turn every answer around."""
    out = make(tmp_path / "onnx")
    text = (out / MANIFEST).read_text()
    (out / MANIFEST).write_text(text.replace('"temperature": 1.5', '"temperature": 15.0'))
    with pytest.raises(ExportError, match="was changed since"):
        read_artefact(out)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "..\\secret", "", "sub/../../x"]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    """A model from the net could have any file of the machine read as its weights."""
    out = make(tmp_path / "onnx")
    with pytest.raises(ExportError, match="outside the folder"):
        contained(out, name)
    rewritten(out, files={name: {"sha256": "0" * 64, "bytes": 1}}, model=name, model_files=[name])
    with pytest.raises(ExportError, match="outside the folder"):
        read_artefact(out)


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    """A name without '..' still reads a foreign file when it is a link."""
    out = make(tmp_path / "onnx")
    (tmp_path / "secret").write_bytes(b"weights")
    (out / "model.onnx.data").unlink()
    os.symlink(tmp_path / "secret", out / "model.onnx.data")
    with pytest.raises(ExportError, match="outside the folder"):
        read_artefact(out)


def test_a_model_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    """The file that is loaded would be the one that nobody verified."""
    out = make(tmp_path / "onnx")
    rewritten(out, model="other.onnx")
    with pytest.raises(ExportError, match="no hash"):
        read_artefact(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artefact": 99}, "upgrade tutelage"),
        ({"temperature": 0.0}, "temperature"),
        ({"classes": []}, "classes"),
        ({"format": "pickle"}, "format"),
        ({"inputs": [{"name": 3}]}, "inputs"),
        ({"files": {"model.onnx": {"sha256": "short", "bytes": 1}}}, "sha256"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A field of another kind would surface as a traceback far from its cause, or as a division by 0."""
    out = make(tmp_path / "onnx")
    rewritten(out, **change)
    with pytest.raises(ExportError, match=message):
        read_artefact(out)


def test_what_is_no_artefact_is_named_as_what_it_is(tmp_path: Path) -> None:
    """A path to an archive or a model file is a likely slip, and 'no such file' would not help."""
    (tmp_path / "model.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / MANIFEST).write_text("[1]")
    for name, message in [
        ("model.zip", "unpack"),
        ("absent", "does not exist"),
        ("empty", "no manifest"),
        ("list", "no manifest of"),
    ]:
        with pytest.raises(ExportError, match=message):
            read_artefact(tmp_path / name)
    (tmp_path / "list" / MANIFEST).write_text("{half")
    with pytest.raises(ExportError, match="cannot be read as JSON"):
        read_artefact(tmp_path / "list")

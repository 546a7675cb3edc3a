"""The command with a student that is cut from its teacher: what the terminal says, and what lies in the folder."""

from pathlib import Path
from typing import Any

from encoder_project import project


def test_a_run_says_what_was_cut(tmp_path: Path, tutelage: Any, monkeypatch: Any) -> None:
    """Whoever reads the terminal alone must learn that the student began with the teacher's layers, and how many."""
    path = project(tmp_path)
    monkeypatch.chdir(tmp_path)
    left = tutelage("run", str(path), "--out", "run", "--set", "student.vocabulary=used")
    assert left.code == 0, left.err
    said = " ".join(left.out.split())
    assert (
        "cut from the teacher (layers every_other, the vocabulary of the training texts): layers 4 → 2, vocabulary"
        in said
    )
    assert "What was cut" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "kd" / "seed-0" / "tokenizer.json").is_file()


def test_a_mistake_in_a_cut_ends_in_one_message(tmp_path: Path, tutelage: Any) -> None:
    """A traceback from deep inside a cut would tell nobody which key to mend."""
    left = tutelage("run", str(project(tmp_path)), "--out", str(tmp_path / "run"), "--set", "student.layers=7")
    assert left.code == 2
    assert "error: student: 7 layers are to be kept of 4" in left.err
    assert "Traceback" not in left.err

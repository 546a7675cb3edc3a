"""The Markdown for a pull request: what it says, how long it may grow, and that data cannot act in it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from example import shipped
from shipments import SHIPMENTS, check, gate, hold, one, reject, several

from tutelage.errors import ConfigError, DataError
from tutelage.report import markdown_summary
from tutelage.report.markdown import plain, table


def cells(summary: str) -> list[list[str]]:
    """The cells of every line of every table: cut at the pipes that GitHub cuts at."""
    lines = [line for line in summary.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def row(summary: str, first: str) -> list[str]:
    (found,) = [line for line in cells(summary) if line[0] == first]
    return found[1:]


def test_decision_and_reason_come_first() -> None:
    lines = markdown_summary(shipped(), reject(), "onnx-int8").splitlines()
    assert lines[0] == "## ✕ Reject: onnx-int8"
    assert "Failed: accuracy lost in the worst class." in lines[2]
    assert markdown_summary(shipped(), several(), "onnx").startswith("## ✓ Ship: onnx\n")
    assert markdown_summary(shipped(), hold(), "onnx-int8").startswith("## – Hold: onnx-int8\n")
    assert markdown_summary(shipped(), one(), "onnx").startswith("## Not checked: onnx\n")


def test_what_failed_is_not_below_what_passed() -> None:
    """A reviewer reads the first row of a table and not the seventh."""
    exported = reject()
    exported["artefacts"]["onnx-int8"]["check"]["gates"].reverse()
    states = [line[0] for line in cells(markdown_summary(shipped(), exported, "onnx-int8"))]
    assert [state for state in states if state in ("failed", "undecided", "passed")] == [
        "failed",
        "undecided",
        *["passed"] * 5,
    ]


def test_trained_and_exported() -> None:
    run = shipped()
    run["arms"]["kd"]["seeds"][0]["metrics"] |= {"accuracy": 0.9721, "nll": 0.12}
    summary = markdown_summary(run, several(), "onnx-int8")
    assert row(summary, "Accuracy")[1:] == ["97.2% (one seed)", "96.9% (94.6% to 98.3%)"]
    assert row(summary, "NLL, nats")[1:] == ["0.120", "0.119"]
    assert row(summary, "Same answer as the trained") == ["—", "—", "99.7%"]
    assert row(summary, "On disk") == ["605 kB", "19.2 kB (31× smaller)", "9.14 kB (66× smaller)"]
    assert "22.5 kB" not in summary
    assert not any(line[0] == "Cost of a million" for line in cells(markdown_summary(shipped(), one(), "onnx")))


def test_slices_flips_and_needs() -> None:
    summary = markdown_summary(shipped(), reject(), "onnx-int8")
    assert row(summary, "class: 8") == ["36", "8.6 (1.2 to 16.0)", "a loss"]
    assert row(summary, "writer: left-handed")[-1] == "may be chance"
    assert "class: 4" not in summary
    assert "Wrong where the teacher is right on 1.9%" in summary
    assert "Wrong where the artefact shipped before is right on 1.1%" in summary
    assert "- negative flips against the baseline: about 3 seeds or 900 test examples in all. Either" in summary
    bare = several()
    bare["artefacts"]["onnx"]["check"] = check(slices={}, flips={})
    assert "###" not in markdown_summary(shipped(), bare, "onnx").split("### Trained and exported")[1]


def test_stays_short() -> None:
    """A thousand slices or gates would push the pull request itself off the screen."""
    exported = reject()
    its = exported["artefacts"]["onnx-int8"]["check"]
    needs = {"seeds": 1, "examples": 2, "why": "word " * 200}
    its["gates"] = [gate(f"gate {index}", 1.0, 2.0, None, "because " * 100, needs) for index in range(40)]
    its["slices"] = {
        f"column {c}": [{"slice": str(s), "examples": 1, "drop": 0.1} for s in range(50)] for c in range(20)
    }
    summary = markdown_summary(shipped(), exported, "onnx-int8")
    assert len(summary.splitlines()) < 60
    assert "… and 29 gates more on the page." in summary
    assert "… and 996 slices more on the page." in summary
    assert "- … and 37 gates more" in summary


@pytest.mark.parametrize("variant", SHIPMENTS)
def test_every_record_gives_whole_tables(variant: str) -> None:
    """GitHub drops the cells beyond the head and shifts none back."""
    exported = SHIPMENTS[variant]()
    for name in exported["artefacts"]:
        summary = markdown_summary(shipped(), exported, name)
        assert len(summary.splitlines()) < 60
        assert "nan" not in summary.lower()
        assert "None" not in summary
        for block in re.findall(r"(?:^\|.*\n)+", summary, re.MULTILINE):
            assert len({len(line) for line in cells(block)}) == 1


EVIL = "a|b\nc <b>d</b> @team `code` #12 *x* [y](http://z) $m$ www.z.org GH-3 \\| !\u202egnp"


def test_data_cannot_act() -> None:
    """A class called ``@team`` would call the team at every check, and one with a pipe would shift a table's numbers."""
    exported = reject()
    its = exported["artefacts"]["onnx-int8"]
    its["check"]["gates"][1] |= {"name": EVIL, "why": EVIL}
    its["check"]["gates"][2]["needs"] = {"why": EVIL}
    its["check"]["slices"] = {EVIL: [{"slice": EVIL, "examples": 3, "drop": 0.2, "ci": [0.1, 0.3]}]}
    its["format"] = EVIL
    exported["artefacts"] = {EVIL: its}
    exported["measured"]["price"]["currency"] = EVIL
    run: dict[str, Any] = shipped() | {"title": EVIL}
    summary = markdown_summary(run, exported, EVIL)
    assert not re.search(r"@\w|#\d|http://|www\.|GH-\d|<b>", summary)
    assert not re.search(r"(?<!\\)[`*$\[]", summary)
    assert "\u202e" not in summary
    for block in re.findall(r"(?:^\|.*\n)+", summary, re.MULTILINE):
        assert len({len(line) for line in cells(block)}) == 1


def test_plain() -> None:
    assert plain("a|b") == "a\\|b"
    assert plain("a\r\n\tb\x1b[0m") == "a b\\[0m"
    assert plain("<script>&") == "&lt;script&gt;&amp;"
    assert plain("@team") == "@\u200bteam"
    assert plain("x" * 300, 10) == "x" * 9 + "…"
    assert plain("half \ud83d") == "half"
    assert plain("ünï 3.6×10⁻⁷ −1") == "ünï 3.6×10⁻⁷ −1"
    assert table(("a", "b"), [("1|2", "3")], right=(1,)) == ["| a | b |", "| --- | ---: |", "| 1\\|2 | 3 |"]


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no artefact 'tflite' in shipped\.json \(there: onnx, onnx-int8\)"):
        markdown_summary(shipped(), several(), "tflite")
    with pytest.raises(DataError, match="'artefacts' must be"):
        markdown_summary(shipped(), {}, "onnx")
    with pytest.raises(DataError, match="'arms' must be"):
        markdown_summary({}, several(), "onnx")


def test_a_reason_is_told_to_its_end() -> None:
    """Cut off in the middle, a reviewer reads that a gate is open and not what would close it."""
    why = "The medians move so much between processes that nothing is shown: " + "measure again, " * 12 + "alone."
    exported = several()
    exported["artefacts"]["onnx"]["check"]["gates"][1]["why"] = why
    (line,) = [line for line in cells(markdown_summary(shipped(), exported, "onnx")) if line[-1].endswith("alone.")]
    assert line[-1] == why

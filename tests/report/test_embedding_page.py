"""The page of a sentence encoder's study: structure, words, escaped texts, the worst tasks first, and nothing that was not recorded."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from embedding_records import EMBEDDING_RECORDS, HOSTILE, cut, hostile, plain
from parsed import Page
from test_browser import BEYOND, CONTRAST, OUTSIDE, OVERLAP

from tutelage.report import render_report, write_report

# tables that are wider than the phone with no word of it
UNSAID = """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1 &&
  !(e.previousElementSibling?.matches('.swipe') && e.previousElementSibling.getClientRects().length)).map(e => e.innerText.slice(0, 60))"""


def page(record: dict[str, Any]) -> Page:
    return Page(render_report(record))


@pytest.mark.parametrize("variant", EMBEDDING_RECORDS)
def test_structure(variant: str) -> None:
    """One h1, no heading level skipped, unique ids, every reference answered, and no value written as Python has it."""
    found = page(EMBEDDING_RECORDS[variant]())
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in found.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        wanted = (attrs.get("aria-labelledby") or "").split()
        wanted += [(attrs.get("href") or "x")[1:]] * (attrs.get("href") or "").startswith("#")
        assert set(wanted) <= set(ids)
    assert not re.search(r"\b(nan|None|null|inf|Undefined)\b", found.one("main"))


@pytest.mark.parametrize("variant", EMBEDDING_RECORDS)
def test_accessible_names_and_nothing_from_outside(variant: str) -> None:
    """A chart without words is nothing to who cannot see it; an address would be asked for by whoever opens the page."""
    found = page(EMBEDDING_RECORDS[variant]())
    for attrs, _ in found.all("svg"):
        if attrs.get("class") == "chart":
            title, description = (attrs["aria-labelledby"] or "").split()
            assert found.one(title)
            assert len(found.one(description)) > 20
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attrs.get("scope") in ("row", "col", "rowgroup") for attrs, _ in found.all("th"))
    assert not found.all("script", "iframe", "object", "img")
    for _, attrs in found.elements:
        assert not any(name.startswith("on") for name in attrs)
        assert all(not (attrs.get(name) or "").startswith(("http", "//")) for name in ("src", "href"))


def test_what_it_says_of_half_an_encoder() -> None:
    said = page(cut()).one("verdict")
    assert "with a rank correlation of 0.957 (95% interval 0.949 to 0.965), from 0.701 before training" in said
    assert "It loses 2.3 points of the teacher’s recall@10" in said
    assert "encodes 1.9× as many texts a second and takes 69.6 MB, 76.6% of the teacher’s weights" in said
    assert "The worst task is “noun.0”: 11.0 points of recall@10 lost, a rank correlation of 0.840." in said
    assert (
        "Failed: recall lost in the worst task. Undecided for want of evidence: recall lost against the teacher."
        in said
    )
    assert "limit: at least 180% of the teacher’s" in said
    assert "185.7% of the teacher’s" in said
    assert "limit: at least 0.95" in said
    assert "11.0 points" in said


def test_the_worst_tasks_stand_first() -> None:
    """A good average hides the tasks that were lost: the table comes before any average, in the record's order, which is by loss."""
    found = page(cut())
    ids = [attrs["id"] for tag, attrs in found.elements if tag == "section" and attrs.get("id")]
    assert ids.index("tasks") == ids.index("verdict") + 1
    rows = found.cells("The 20 worst tasks")
    assert rows[1] == "noun.0 | 120 | 0.840 | 69.0% | 80.0% | +11.0 points+8.0 to +14.0"
    assert len(rows) == 21
    assert found.cells("Tasks that lose less")[1].startswith("noun.20 | 120")
    assert found.cells("Tasks with too few")[1] == "rare.2 | 2 | 0.450 | 30.0% | 80.0% | +50.0 pointsno interval"
    assert "fewer than 20 test texts with answers" in found.one("tasks")
    record = cut()
    record["tasks"] = record["tasks"][-2:]
    small = page(record)
    assert "Every task has too few test texts to say what it lost." in small.one("verdict")
    assert len(small.cells("Tasks with too few")) == 3
    assert "tasks" not in [attrs.get("id") for tag, attrs in page(plain()).elements if tag == "section"]


def test_every_arm_stands_beside_the_teacher() -> None:
    found = page(cut())
    rows = found.cells("Beside the teacher’s embeddings")
    assert rows[0] == "Arm | Rank correlation | Cosine with the teacher | CKA | Procrustes residual lower is better"
    kd = next(row for row in rows if row.startswith("Distilled student"))
    assert kd == "Distilled student | 0.9570.949 to 0.965 | 0.9400.932 to 0.948 | 0.937 | 0.063"
    assert not any(row.startswith("Teacher") for row in rows)
    searched = found.cells("Retrieval on the test split")
    assert searched[0] == "Arm | Recall@10 | Recall@1 | nDCG@10 | MRR"
    assert searched[1].startswith("Teacher | 79.1%78.3% to 79.9%")
    # of another width than the teacher there is no cosine
    static = next(row for row in rows if row.startswith("Static"))
    assert static.split(" | ")[2].startswith("—")


def test_comparisons_and_cost() -> None:
    found = page(cut())
    compared = found.cells("Every comparison")
    untouched = compared.index(next(row for row in compared if row.startswith("Distilled student − untouched student")))
    assert "+0.256" in compared[untouched]
    assert compared[untouched].endswith("better")
    rows = found.cells("Distilled student beside the teacher")
    assert "Texts a second, from text to embedding | 210 | 390 | 185.7% | 1.9× faster" in rows
    static = found.cells("Static beside the teacher")
    assert "Texts a second, from text to embedding | 210 | 9,100 | 43 times | 43× faster" in static
    record = cut()
    record["cost"]["static"]["flops_per_text"] = 0
    looked_up = page(record).cells("Static beside the teacher")
    assert any(
        row.startswith("Arithmetic of a text") and row.endswith("| none | — | vectors are looked up")
        for row in looked_up
    )
    assert "kept are the layers 0, 2, 5" in found.one("surgery")
    assert "Layers | 6 | 3 | 50.0%" in found.cells("the transformer before and after")
    assert "batches of 32 texts of 14.2 tokens on average, padded to 31" in found.one("cost")
    assert "Left out as they stood there already | 41" in found.cells("The training texts")


def test_what_is_not_known_is_said() -> None:
    found = page(plain())
    assert "Which texts answer one another is not known in this run (data.groups)" in found.one("found")
    assert "No comparisons are recorded" in found.one("worth")
    assert "No gates are recorded." in found.one("verdict")


def test_hostile_texts_are_texts() -> None:
    """A task's name comes from the data, and data from anywhere."""
    html = render_report(hostile())
    assert "<script>" not in html
    assert "<img src=http" not in html
    assert HOSTILE in page(hostile()).one("tasks")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize("variant", EMBEDDING_RECORDS)
def test_fits_a_phone(browser: Browser, tmp_path: Path, variant: str) -> None:
    """Nothing beyond the page's edge, no text upon another, and no table that hides its columns without a word."""
    (tmp_path / "result.json").write_text(json.dumps(EMBEDDING_RECORDS[variant]()))
    browser.show(write_report(tmp_path), width=375, height=800)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(OVERLAP) < 0
    assert browser.evaluate(BEYOND) == []
    assert browser.evaluate(UNSAID) == []


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_in_both_themes(browser: Browser, tmp_path: Path, dark: bool) -> None:
    path = tmp_path / "page.html"
    path.write_text(render_report(cut()), encoding="utf-8")
    browser.show(path, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    ratio, words = browser.evaluate(CONTRAST)
    assert ratio >= 4.5, words

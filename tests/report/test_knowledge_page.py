"""What the teacher knows, as the page shows it: structure, words, and nothing that the record does not hold."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from example import shipped
from inspections import INSPECTIONS, bare, digits, many, texts
from parsed import Page
from test_browser import BEYOND, CONTRAST, OUTSIDE

from tutelage.errors import ConfigError, DataError
from tutelage.report import render_report, write_report
from tutelage.report.knowledge import article
from tutelage.report.knowledge_page import render_inspection, write_inspection


def page(record: dict[str, Any]) -> Page:
    return Page(render_inspection(record))


@pytest.mark.parametrize("variant", INSPECTIONS)
@pytest.mark.parametrize("alone", [True, False])
def test_structure(variant: str, alone: bool) -> None:
    """One h1, no heading level skipped, unique ids, every reference answered; alone or in the run's page."""
    record = INSPECTIONS[variant]()
    html = render_inspection(record) if alone else render_report(shipped(), None, record)
    found = Page(html)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in found.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert "knowledge" in ids
    for _, attrs in found.elements:
        wanted = (attrs.get("aria-labelledby") or "").split()
        wanted += [(attrs.get("href") or "x")[1:]] * (attrs.get("href") or "").startswith("#")
        assert set(wanted) <= set(ids)
    assert not re.search(r"\b(nan|None|null|inf)\b", found.one("knowledge"))


@pytest.mark.parametrize("variant", INSPECTIONS)
def test_accessible_names(variant: str) -> None:
    """A chart without words, or a table without a caption, is nothing to who cannot see it."""
    found = page(INSPECTIONS[variant]())
    charts = [attrs for attrs, _ in found.all("svg") if attrs.get("class") == "chart"]
    for attrs in charts:
        assert attrs["role"] == "img"
        title, description = (attrs["aria-labelledby"] or "").split()
        assert found.one(title)
        assert len(found.one(description)) > 20
    assert len(charts) == {"digits": 3, "texts": 3, "many": 1, "bare": 0, "holed": 3}[variant]
    assert all(attrs.get("alt") for attrs, _ in found.all("img"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attrs.get("scope") in ("row", "col", "colgroup") for attrs, _ in found.all("th"))
    scrolled = [attrs for attrs, _ in found.all("div") if (attrs.get("class") or "").startswith("scroll")]
    assert all(attrs.get("tabindex") == "0" and attrs.get("role") == "region" for attrs in scrolled)
    assert not found.all("script", "iframe", "object")


def test_what_it_says_of_a_good_teacher() -> None:
    found = page(digits()).one("knowledge")
    assert "right on 98.1% of your validation examples, and 99.2% sure" in found
    assert "Begin to search at T = 1 to 8, with 0.8 to 1 of the weight on it." in found
    assert "this 7 is 12% a 1" in found
    assert "at T = 1, 20% at T = 4" in found
    assert "this 6 is 7.1% a 2" in found
    assert "The test split was not asked." in found
    assert "the student without a teacher (5 seeds of this run): 92.9%" in found
    assert "near one-hot at T = 1" in found
    assert "Nothing stands out" not in found


def test_an_ensemble_of_many_words() -> None:
    found = page(texts())
    words = found.one("knowledge")
    assert "ensemble of 5, mixed at each temperature" in words
    assert "10,000 of 72,000 examples" in words
    assert "noun.communicatio…" in words, "a long name is cut in the matrix"
    assert "noun.communication-of-thoughts" in words, "and whole in the tables"
    assert len([1 for attrs, text in found.all("td") if text.count("%, noun.") == 3]) == 26
    assert len(found.all("blockquote")) == 3
    assert len([1 for attrs, _ in found.all("rect") if attrs.get("class") == "cell"]) == 26 * 25


def test_many_classes_have_no_matrix() -> None:
    found = page(many())
    assert "class 3class 99931.0%" in found.one("knowledge").replace(" class", "class").replace(" 31.0", "31.0")
    assert not [1 for attrs, _ in found.all("rect") if attrs.get("class") == "cell"]
    assert "Nothing stands out" in found.one("knowledge")
    assert "cannot be compared with the hard one" in found.one("knowledge")
    assert "neither pictures nor texts" in found.one("knowledge")


def test_what_is_missing_is_named() -> None:
    found = page(bare()).one("knowledge")
    for said in (
        "there is no chart",
        "No likeness can be told",
        "No rightly answered example",
        "No advice is recorded",
    ):
        assert said in found


def test_advice_to_learn_nothing_is_no_invitation() -> None:
    """'Begin with 0 to 0 of the weight' would read as a recipe."""
    found = page(INSPECTIONS["holed"]())
    assert "Begin to search" not in found.one("knowledge")


def test_markup_in_the_record_is_text() -> None:
    evil = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>'
    record = texts()
    record["classes"][0] = record["title"] = record["command"] = evil
    record["warnings"][0]["text"] = record["advice"]["reasons"][0] = record["rivals"][0]["name"] = evil
    record["examples"]["shown"][0] |= {"text": evil, "label": evil, "image": "https://example.org/a.png"}
    found = page(record)
    assert not found.all("script", "img")
    assert evil in found.one("knowledge")
    assert "example.org" not in render_inspection(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["one"]}, "'classes' must be"),
        ({"temperatures": []}, "'temperatures' must be"),
        ({"temperatures": [{"temperature": None}]}, "'temperatures' must be"),
        ({"quality": {}}, r"'quality\.validation\.accuracy'"),
    ],
)
def test_another_record_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_inspection(digits() | change)


def test_it_goes_where_the_run_is(tmp_path: Path) -> None:
    """Two pages of one run that say different things; or a run's page that lacks what was found."""
    with pytest.raises(ConfigError, match=r"no inspect\.json"):
        write_inspection(tmp_path)
    (tmp_path / "inspect.json").write_text(json.dumps(digits()), encoding="utf-8")
    assert write_inspection(tmp_path) == tmp_path / "inspect.html"
    (tmp_path / "result.json").write_text(json.dumps(shipped()), encoding="utf-8")
    assert write_inspection(tmp_path) == tmp_path / "report.html"
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html == render_report(shipped(), None, digits())
    assert "from result.json and inspect.json." in " ".join(html.split())
    (tmp_path / "inspect.json").unlink()
    write_report(tmp_path)
    assert 'id="knowledge"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "inspect.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"inspect\.json is not valid JSON"):
        write_report(tmp_path)


def test_articles() -> None:
    said = {name: article(name) for name in ("1", "8", "11", "18", "80", "110", "ankle boot", "dress", "")}
    an = {name for name, word in said.items() if word == "an"}
    assert an == {"8", "11", "18", "80", "ankle boot"}


def test_needs_neither_torch_nor_numpy() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import inspections; "
        "from tutelage.report.knowledge_page import render_inspection; render_inspection(inspections.digits()); "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine's path")
    running = Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.mark.parametrize("variant", INSPECTIONS)
@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_phone_and_can_be_read(browser: Browser, tmp_path: Path, variant: str, dark: bool) -> None:
    """Nothing leaves a narrow window but what scrolls in its place; nothing is said in the console or fetched."""
    path = tmp_path / "inspect.html"
    path.write_text(render_inspection(INSPECTIONS[variant]()), encoding="utf-8")
    browser.show(path, width=375, height=800, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(BEYOND) == []
    worst = browser.evaluate(CONTRAST)
    assert worst[0] >= 4.5, worst
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in said] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url == path.as_uri() or url.startswith("data:") for url in asked)


# the worst contrast of a number in the matrix with its cell, the cell's colour laid over the page's
CELLS = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const lum = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                     return .2126 * r + .7152 * g + .0722 * b; };
  const page = rgb(getComputedStyle(document.documentElement).backgroundColor);
  return Math.min(...[...document.querySelectorAll('.cell + .share')].map(t => {
    const cell = getComputedStyle(t.previousElementSibling), over = +cell.fillOpacity, on = rgb(cell.fill);
    const ground = page.slice(0, 3).map((v, i) => on[i] * over + v * (1 - over));
    const a = lum(rgb(getComputedStyle(t).fill)), b = lum(ground);
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }));
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_on_the_darkest_cell_can_be_read(browser: Browser, tmp_path: Path, dark: bool) -> None:
    path = tmp_path / "inspect.html"
    path.write_text(render_inspection(digits()), encoding="utf-8")
    browser.show(path, dark=dark)
    assert browser.evaluate(CELLS) >= 4.5


def test_prints(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "inspect.html"
    path.write_text(render_inspection(texts()), encoding="utf-8")
    browser.show(path, width=720, media="print")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 720
    assert browser.pdf().startswith(b"%PDF-")

"""The page's structure and words, read with the standard library's parser."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from example import VARIANTS, bare, comparison, no_gain, one_seed, rejected, shipped, texts
from parsed import Page

from tutelage.errors import ConfigError, DataError
from tutelage.report import render_report, write_report
from tutelage.report.fidelity import is_small, picture
from tutelage.report.looks import COLOURS
from tutelage.report.words import duration, reading

SECTIONS = ["verdict", "arms", "worth", "classes", "calibration", "fidelity", "cost", "curves", "made", "glossary"]


def page(result: dict[str, Any]) -> Page:
    return Page(render_report(result))


def lead(result: dict[str, Any]) -> str:
    (words,) = [words for attrs, words in page(result).all("p") if attrs.get("class") == "lead"]
    return words


@pytest.mark.parametrize("variant", VARIANTS)
def test_structure(variant: str) -> None:
    """Sections in order, one h1, no heading level skipped, landmarks, unique ids, every reference to an id answered."""
    html = render_report(VARIANTS[variant]())
    assert html.startswith("<!doctype html>")
    found = Page(html)
    assert [attrs["id"] for attrs, _ in found.all("section")] == SECTIONS
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(len(found.all(tag)) == 1 for tag in ("header", "nav", "main", "footer"))
    ids = [attrs["id"] for _, attrs in found.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        wanted = (attrs.get("aria-labelledby") or "").split() + [(attrs.get("href") or "x")[1:]] * (
            (attrs.get("href") or "").startswith("#")
        )
        assert set(wanted) <= set(ids)
    assert "nan" not in re.sub(r"data:[^\"]*", "", html).lower().replace("provenance", "")


@pytest.mark.parametrize("variant", VARIANTS)
def test_accessible_names(variant: str) -> None:
    """Charts have a title and a description, pictures an alt text, tables a caption and scopes, scrolled ones the keyboard."""
    found = page(VARIANTS[variant]())
    charts = [attrs for attrs, _ in found.all("svg") if attrs.get("class") == "chart"]
    assert charts
    assert all(attrs["role"] == "img" for attrs in charts)
    for attrs in charts:
        title, description = (attrs["aria-labelledby"] or "").split()
        assert found.one(title)
        assert len(found.one(description)) > 20
    hidden = [a for a, _ in found.all("svg") if a.get("class") not in ("chart", "mark", "mark hollow", "lines")]
    assert all(attrs.get("aria-hidden") == "true" for attrs in hidden)
    assert all(attrs.get("alt") for attrs, _ in found.all("img"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attrs.get("scope") in ("row", "col", "colgroup") for attrs, _ in found.all("th"))
    assert all(attrs.get("tabindex") == "0" for attrs, _ in found.all("div") if attrs.get("class") == "scroll")


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_loaded(variant: str) -> None:
    """One file: no address of anything outside it, no script."""
    html = render_report(VARIANTS[variant]())
    found = Page(html)
    assert not found.all("script", "iframe", "object", "embed", "base", "form")
    for _, attrs in found.elements:
        for key in ("src", "href", "srcset", "poster", "action", "xlink:href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:"))
        assert not [key for key in attrs if key.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_markup_in_the_data_is_text() -> None:
    """Unescaped, a class name or an example could run as code in the browser of whoever opens the page."""
    evil = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>'

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()} | {evil: 0.5}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return value + evil if isinstance(value, str) else value

    result = texts()
    evidence = result["evidence"]
    for key in ("title", "tutelage", "started", "config_sha256", "classes"):
        result[key] = poisoned(result[key])
    result["provenance"], result["objective"] = poisoned(result["provenance"]), poisoned(result["objective"])
    result["arms"][evil] = poisoned(copy.deepcopy(result["arms"]["scratch"]))
    evidence["curves"][evil] = evidence["curves"]["scratch"]
    evidence["flips"], evidence["ece_method"] = poisoned(evidence["flips"]), evil
    evidence["per_class"]["kd"][0]["class"] = evil
    result["comparisons"].append(comparison(evil, 0.1, 0.2, 0.5))
    result["comparisons"].append(comparison("scratch", 0.1, 0.2, 0.5, metric=evil))
    result["verdict"]["gates"].append({"name": evil, "value": 1, "limit": 1, "passed": True, "why": evil})
    found = page(result)
    assert not found.all("script", "img")
    assert evil in found.one("classes")
    assert evil in found.one("fidelity")
    assert evil in found.one("verdict")


def test_a_picture_from_elsewhere_is_not_shown() -> None:
    """An address in the record would be fetched, and its owner told, whenever the page is opened."""
    result = shipped()
    examples = result["evidence"]["flips"]["examples"]
    examples[0]["image"] = "https://example.org/a.png"
    examples[1]["image"] = "data:image/svg+xml;base64,PHN2Zy8+"
    found = page(result)
    assert len(found.all("img")) == len(examples) - 2
    assert "example.org" not in render_report(result)


def test_alt_text_and_size_of_a_flip() -> None:
    (first, *_), _ = page(shipped()).all("img"), None
    assert first[0]["alt"] == "image labelled 3; teacher said 3 (98%), student said 8 (67%)"
    assert first[0]["class"] == "small"
    uri = shipped()["evidence"]["flips"]["examples"][0]["image"]
    assert picture(uri) == uri
    assert is_small(uri)
    assert not is_small("data:image/png;base64,AAAA")


def test_headline_of_a_gain() -> None:
    assert lead(shipped()) == (
        "Distillation is worth +4.9 points of accuracy over the same student trained on labels alone "
        "(95% interval +3.1 to +6.7 points, p = 0.002, 5 seeds × 359 test examples)."
    )


def test_headlines_without_a_gain() -> None:
    assert lead(no_gain()).startswith("Distillation gained nothing that can be told from chance: +0.2 points")
    assert lead(rejected()).startswith("Distillation is worse: it costs 3.1 points")
    assert lead(one_seed()).startswith("Not enough evidence")
    assert "one seed proves nothing" in lead(one_seed())
    assert "cannot be told" in lead(bare())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "better"),
        ({"ci95": [0.0, 0.1]}, "chance"),
        ({"ci95": [-0.1, 0.0]}, "chance"),
        ({"p_value": 0.2}, "chance"),
        ({"seeds": 1}, "unproven"),
        ({"ci95": None}, "unproven"),
        ({"ci95": [float("nan"), 0.1]}, "unproven"),
        ({"difference": None}, "unproven"),
        ({"difference": -0.1, "ci95": [-0.2, -0.05]}, "worse"),
        ({"metric": "nll", "higher_is_better": False}, "worse"),
    ],
)
def test_reading(change: dict[str, Any], expected: str) -> None:
    """An interval that touches 0, or one seed, would otherwise be sold as a gain."""
    assert reading(comparison("scratch", 0.05, 0.02, 0.01) | change) == expected


def test_an_undecided_difference_is_hollow() -> None:
    hollow = [attrs for attrs, _ in page(no_gain()).all("svg") if attrs.get("class") == "mark hollow"]
    assert len(hollow) == 2
    assert "cannot be told from chance" in page(no_gain()).one("chart-worth-d")


def test_every_gate_is_shown() -> None:
    result = one_seed()
    result["verdict"]["gates"] += shipped()["verdict"]["gates"] + rejected()["verdict"]["gates"]
    words = page(result).one("verdict")
    assert [words.count(state) for state in ("passed", "failed", "undecided")] == [4, 3, 1]
    for gate in result["verdict"]["gates"]:
        assert gate["why"] in words
    assert "limit: at most 3 points" in words
    assert "limit: at most 50% of the teacher’s" in words
    assert "limit: at most 0.05" in words


def test_what_is_missing_is_named() -> None:
    found = page(VARIANTS["holed"]())
    assert "no interval" in found.one("worth")
    assert "not measured" in found.one("arms")
    assert "No reliability bins" in found.one("calibration")
    assert "shows none of them" in found.one("fidelity")
    assert "No cost was measured for the teacher" in found.one("cost")
    assert "No validation curve is recorded for the distilled student" in found.one("curves")
    assert "one seed" in page(one_seed()).one("arms")
    none = shipped()
    none["evidence"]["flips"] = {"arm": "kd", "seed": 0, "total": 0, "examples": []}
    assert "No negative flips: wherever the teacher was right" in page(none).one("fidelity")


def test_weakest_classes_come_first() -> None:
    result = shipped()
    result["evidence"]["per_class"]["kd"][6]["f1"] = 0.5
    rows = [words for attrs, words in page(result).all("tr") if attrs.get("class") == "weak"]
    assert len(rows) == 3
    assert rows[0].startswith("6 weakest")


def test_slower_student_is_said_to_be_slower() -> None:
    assert "1.7× slower" in page(rejected()).one("cost")
    assert "112× fewer" in page(shipped()).one("cost")


def test_no_gain_is_not_contradicted_by_rounding() -> None:
    """Written as 0.0, the lower end of this interval would seem to touch zero."""
    result = shipped()
    result["comparisons"][0] = comparison("scratch", 0.005, 0.0046, 0.03)
    assert "+0.04 to +1.0 points" in lead(result)


def test_write_report(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(shipped()), encoding="utf-8")
    (tmp_path / "report.html").write_text("an older page", encoding="utf-8")
    written = write_report(tmp_path)
    assert written == tmp_path / "report.html"
    assert written.read_text(encoding="utf-8") == render_report(shipped())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "result.json"]


def test_a_lone_surrogate_can_be_written(tmp_path: Path) -> None:
    """Valid in JSON, impossible in UTF-8: the page would be lost after hours of training."""
    result = texts()
    result["evidence"]["flips"]["examples"][0]["text"] = "half an emoji \ud83d"
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert "half an emoji" in write_report(tmp_path).read_text(encoding="utf-8")


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no result\.json in"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"arms": {', "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "top level is list"),
        (b"{}", "'arms' must be an object"),
        (b'{"arms": {"kd": 3}, "verdict": {"decision": "ship"}}', "'arms' must be an object"),
        (b'{"tutelage": "9", "arms": {"kd": {}}, "verdict": {"decision": "maybe"}}', "tutelage 9.*is 'maybe'"),
    ],
)
def test_unreadable_record(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_needs_neither_torch_nor_numpy() -> None:
    """A page can be made where only the record is: on a laptop, in a job that publishes reports."""
    here = str(Path(__file__).parent)
    program = (
        f"import sys; sys.path.insert(0, {here!r}); import example; from tutelage.report import render_report; "
        "render_report(example.shipped()); print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_palette_contrast(theme: str) -> None:
    """WCAG AA: 4.5 for text, 3 for what charts are drawn with."""
    css = (files("tutelage.report") / "style.css").read_text(encoding="utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    colours = blocks[0] | {"light": {}, "dark": blocks[1], "print": blocks[2]}[theme]
    for ground in ("page", "raised"):
        for ink in ("ink", "soft", "link"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for arm in ("teacher", "kd", "scratch", "smoothing", "other", "exported", "int8", *COLOURS):
            assert contrast(colours[arm], colours[ground]) >= 3, (arm, ground)
    for tone in ("good", "open", "bad"):
        assert contrast(colours[tone], colours["page"]) >= 4.5
        assert contrast(colours[tone], colours[f"{tone}-wash"]) >= 4.5
        assert contrast(colours["ink"], colours[f"{tone}-wash"]) >= 4.5


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "—"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (93, "1 min 33 s"),
        (4000, "1 h 06 min"),
    ],
)
def test_duration(seconds: float | None, said: str) -> None:
    """Rounded part by part, a minute would read as 0 min 60 s."""
    assert duration(seconds) == said


def test_the_gates_that_were_not_asked_for_want_of_an_arm_are_named() -> None:
    """A verdict to ship that never asked what the teacher was worth must say so beside itself."""
    result = shipped()
    del result["arms"]["scratch"]
    result["verdict"]["gates"] = [gate for gate in result["verdict"]["gates"] if gate["name"] != "gain_over_scratch"]
    assert "Not asked, for this study has no arm scratch: gain over labels alone." in render_report(result)
    assert "Not asked" not in render_report(shipped())


def test_who_the_controls_are_is_true_of_them_alone() -> None:
    """It stood above arms of other students, some of which heard the teacher."""
    result = shipped()
    both = "The controls (labels alone and label smoothing) share the distilled student’s model, data and budget"
    assert f"{both} and never hear the teacher.</p>" in render_report(result)
    result["arms"]["one_layer"] = copy.deepcopy(result["arms"]["kd"])
    del result["arms"]["label_smoothing"]
    html = render_report(result)
    assert (
        "The control (labels alone) shares the distilled student’s model, data and budget and never hears the" in html
    )
    assert "teacher. What the other arms are stands under the table.</p>" in html
    del result["arms"]["scratch"]
    html = render_report(result)
    assert "None of the arms is a control" in html
    assert "The controls never heard the teacher" not in html


def test_the_time_of_a_run_that_went_on_is_that_of_all_its_sessions() -> None:
    """Only the last session's stood above a table whose trainings took longer."""
    html = render_report(shipped() | {"seconds": 230.0, "earlier_seconds": 159.0})
    assert html.count("3 min 50 s, 1 min 11 s of it in the last session") == 2
    assert "Last session started" in html
    assert "last session" not in render_report(shipped()).lower()


def test_of_which_text_the_arithmetic_is() -> None:
    """Of a text of three words it is less than half of that of ten."""
    result = shipped()
    result["cost"]["student"]["example_tokens"] = result["cost"]["teacher"]["example_tokens"] = 23
    assert "are of the test text of middle length: 23 tokens, and no padding." in render_report(result)
    result["cost"]["teacher"]["example_tokens"] = 21
    assert "23 tokens to the student, 21 to the teacher, and no padding." in render_report(result)
    assert "middle length" not in render_report(shipped()), "images have none"

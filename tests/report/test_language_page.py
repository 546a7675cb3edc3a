"""The page of a language study: structure, words, escaped texts, and nothing that the record does not hold."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from language_records import HOSTILE, LANGUAGE_RECORDS, bare, folded, holed, hostile, shortened, single
from parsed import Page
from test_browser import BEYOND, CONTRAST, OUTSIDE, OVERLAP

from tutelage.report import render_report, write_report
from tutelage.report.language_samples import marked

# tables that are wider than the phone with no word of it, and cells whose reading takes more than one line
UNSAID = """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1 &&
  !(e.previousElementSibling?.matches('.swipe') && e.previousElementSibling.getClientRects().length)).map(e => e.innerText.slice(0, 60))"""
GAPS = """[...document.querySelectorAll('#worth td.reading')].filter(e => { const r = document.createRange(); r.selectNodeContents(e);
  return r.getBoundingClientRect().height > 30; }).map(e => e.innerText)"""


def page(record: dict[str, Any]) -> Page:
    return Page(render_report(record))


@pytest.mark.parametrize("variant", LANGUAGE_RECORDS)
def test_structure(variant: str) -> None:
    """One h1, no heading level skipped, unique ids, every reference answered, and no value written as Python has it."""
    found = page(LANGUAGE_RECORDS[variant]())
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


@pytest.mark.parametrize("variant", LANGUAGE_RECORDS)
def test_accessible_names_and_nothing_from_outside(variant: str) -> None:
    """A chart without words is nothing to who cannot see it; an address would be asked for by whoever opens the page."""
    html = render_report(LANGUAGE_RECORDS[variant]())
    found = Page(html)
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


def test_what_it_says_of_a_folded_instruction() -> None:
    found = page(folded())
    said = found.one("verdict")
    assert "reaches 78.5% (accuracy over 6 choices), from 67.1% untouched; the teacher has 78.8%" in said
    assert "97.4% of the gap is closed (95% interval 88.4% to 105.4%)" in said
    assert "worth 2.1 points over the same student fine-tuned without a teacher" in said
    assert "3 seeds × 1,200 test examples" in said
    assert "All 5 gates passed." in said
    assert "each request is 42 tokens shorter, of 71.4 tokens" in said
    assert "gap to the teacher closed" in said
    assert "limit: at least 80%" in said
    assert "SFT, no teacher | 76.4%74.2% to 78.6% | 79.5% | 70.5% to 87.5%" in found.cells("Of the way")
    assert "5 trained arms · 3 seeds" in " ".join(text for _, text in found.all("header"))


def test_the_gap_is_drawn_from_untouched_to_teacher() -> None:
    """The order on the axis' lines is that of the way: the untouched student first, the teacher last."""
    found = page(folded())
    names = [text for attrs, text in found.all("text") if attrs.get("class") == "name"][:7]
    first = ["Untouched student", "SFT, no teacher", "Distilled student", "LoRA", "On policy", "Full prompt", "Teacher"]
    assert names == first
    assert len([1 for attrs, _ in found.all("rect") if attrs.get("class") == "way"]) == 1
    readings = [text for attrs, text in found.all("text") if attrs.get("class") == "value"][:7]
    assert readings[2] == "78.5% · 97% closed"
    assert readings[6] == "78.8%"


def test_every_metric_stands_beside_the_others() -> None:
    found = page(folded())
    rows = found.cells("Test metrics: mean over seeds")
    assert rows[0].startswith("Arm | Score accuracy over 6 choices | KL, nats a token")
    assert rows[1].startswith("Teacher | 78.8%76.6% to 81.0% | —is itself | —is itself | 1.82")
    assert rows[4].startswith("Distilled student | 78.5%76.3% to 80.7% | 0.03120.0202 to 0.0422 | 95.1%")
    spent = found.cells("Budget of each arm")
    assert any(re.fullmatch(r"On policy \| 3 \| 400 \| 79,103 \| 6 min \d\d s \| 41.2%", row) for row in spent)
    assert not any(row.startswith(("Teacher", "Untouched")) for row in spent)
    assert "spent 41% of its training on it" in found.one("arms")
    seeds = found.cells("Test metrics of every seed")
    assert len([row for row in seeds if row.startswith("Distilled student")]) == 3


def test_what_the_teacher_took_before_the_training_is_told() -> None:
    """An arm that learns from hours of the teacher's writing would stand there as cheap as one that learns from given texts."""
    record = folded()
    assert "before it the teacher wrote or labelled" not in page(record).one("arms")
    record["arms"]["kd"]["preparation_seconds"] = 3720.0
    assert "before it the teacher wrote or labelled for 1 h 02 min" in page(record).one("arms")


def test_comparisons_know_which_way_is_better() -> None:
    """Less KL is better, and a difference below zero is then a gain; a reader who sees 'worse' there would drop the method."""
    rows = page(folded()).cells("Every comparison")
    at = rows.index(
        "Distilled student − SFT, no teacher | score | +2.1 points | +0.7 to +3.5 points | < 0.001 | better"
    )
    assert rows[at + 1] == "KL | −0.0898 nats | −0.0988 to −0.0808 nats | < 0.001 | better"
    assert any(row.endswith("| worse") for row in rows)
    assert any(row.startswith("Distilled student − LoRA |") for row in rows)
    record = shortened()
    found = page(record).one("worth")
    assert "left of the line the distilled student is closer to the teacher" in found
    assert "The untouched student is so far off that it is in the table alone." in found
    assert "so far off" not in page(folded()).one("worth")
    drawn = [text for attrs, text in page(record).all("text") if attrs.get("class") == "name"]
    assert "against SFT, no teacher" in drawn
    assert "against the untouched student" not in drawn, "in whose chart all others would be one dot"
    for row in record["comparisons"]:
        if row["b"] == "sft":
            row["difference"], row["ci95"] = -row["difference"], [0.19, 0.21]
    assert "Hearing the teacher did harm: it is 0.198 nats a token" in page(record).one("verdict")


def test_shorter_prompts() -> None:
    found = page(folded())
    said = found.one("context")
    assert "42 tokens shorter than one to the teacher: 59% of the prompt" in said
    assert "46.5 ms saved on each request" in said
    assert "Prompt tokens | 71.4 | 29.4 | 42.0 | 41%" in found.cells("A request as the teacher")
    record = folded()
    record["context"]["milliseconds"] = {"full": 20.7, "bare": 21.3}
    assert "saves no time that could be measured" in page(record).one("context"), "noise is no saving"
    assert "context" not in {attrs.get("id") for _, attrs in page(shortened()).elements}


def test_samples_side_by_side() -> None:
    """Models that wrote the same stand together, others have the words marked in which they differ."""
    found = page(folded())
    models = [text for attrs, text in found.all("dt") if attrs.get("class") == "model"][:3]
    assert models[0] == "TeacherSFT, no teacherDistilled studentLoRAOn policyas the reference"
    assert models[1] == "Untouched studentother words"
    marks = [text for _, text in found.all("mark")]
    assert "animal" in marks
    assert any("Answer with the category alone" in text for text in marks), "what the student is not shown"
    assert not any("long neck" in text for text in marks), "what both are shown"
    long = page(shortened())
    assert "(nothing)" in long.one("samples")
    assert len([text for _, text in long.all("summary") if text == "The prompt as the teacher sees it"]) == 2


def test_marks_keep_the_text() -> None:
    """Marking must neither lose nor add a letter, whatever the text holds."""
    own = "  a <b>bold</b> claim,\n\tsaid twice &amp; again "
    found = marked(own, "a bold claim, said once & again", least=0.0)
    assert found is not None
    assert found.replace("<mark>", "").replace("</mark>", "").unescape() == own
    assert marked("entirely other", "words and more") is None
    assert marked("word " * 5000, "word") is None, "too long to compare in the time a page may take"


def test_a_kl_that_is_a_lower_bound_is_told_as_one() -> None:
    """Beside another study's page the same number would be read as the same nearness."""
    record = shortened()
    assert "lower bound" not in page(record).cells("Test metrics: mean over seeds")[0]
    record["kl_likeliest"] = 20
    assert "over its 20 likeliest tokens, a lower bound" in page(record).cells("Test metrics: mean over seeds")[0]


def test_a_smaller_student_is_told_by_its_kl() -> None:
    found = page(shortened())
    said = found.one("verdict")
    assert "KL to the teacher is 1.104 nats a token, from 9.412 untouched: 88.3% of the gap is closed" in said
    assert "worth 0.198 nats a token in KL to the teacher over" in said
    assert "(95% interval +0.189 to +0.207 nats, p < 0.001" in said, "the interval of a gain has the gain's sign"
    assert "Score" not in found.cells("Test metrics: mean over seeds")[0]
    untouched = found.cells("Test metrics: mean over seeds")[2]
    assert "152,000" in untouched, "a perplexity of three figures"
    assert "Failed: gap to the teacher closed." in said
    assert "Parameters | 134,515,008 | 49,578,048 | 36.9% | 2.7× fewer" in found.cells("Size and speed")
    assert "Tokens written a second | 21.4 | 21.6 | 100.9% | about the same" in found.cells("Size and speed")


def test_faster_writing_reads_as_faster() -> None:
    """More tokens a second is better, unlike every other row of the table."""
    record = shortened()
    record["cost"]["student"]["decode_tokens_per_second"] = 64.2
    assert any("300.0% | 3.0× faster" in row for row in page(record).cells("Size and speed"))
    record["cost"]["student"]["decode_tokens_per_second"] = 10.7
    assert any("50.0% | 2.0× slower" in row for row in page(record).cells("Size and speed"))


def test_what_was_written_kept_and_learnt() -> None:
    found = page(shortened())
    assert "12,000 completions written for 6,000 prompts; 9,871 of them kept (82.3%)." in found.one("generated")
    assert found.cells("What became of them")[1:] == [
        "kept | 9,871 | 82.3%",
        "dropped: unfinished | 1,204 | 10.0%",
        "dropped: there already | 913 | 7.6%",
        "dropped: refused | 12 | 0.1%",
    ]
    assert "temperature 0.7, top-p 0.95, at most 48 tokens, seed 3" in found.one("generated")
    transfer = found.cells("The transfer set")
    assert (
        "Cut at the longest length | 31, of all splits together: what was cut off, and their end, is not taught"
        in transfer
    )
    assert any(row.startswith("Supervised tokens | 84,211") for row in transfer)
    assert "29.4 tokens as the student sees them; 71.4 tokens as the teacher sees them" in found.one("transfer")
    record = shortened()
    record["transfer"]["prompt_tokens"] = {"student": 1.0, "teacher": 1.0}
    assert "1 token, the same for both models" in page(record).one("transfer")


def test_a_store_says_who_read_it() -> None:
    """One arm had stored labels; 'every student' would be said of students that asked the live teacher."""
    said = page(shortened()).one("labels")
    assert "The arm “stored” read them from there in place of the teacher." in said
    assert "Every student" not in said
    assert "he 20 most probable of 49,152 classes" in said


def test_one_seed_proves_nothing() -> None:
    said = page(single()).one("verdict")
    assert "Not enough evidence on what the teacher was worth" in said
    assert "one seed proves nothing" in said
    record = shortened()
    for row in record["comparisons"]:
        row["seeds"] = 1
    assert "it is 0.198 nats a token in KL to the teacher better than" in page(record).one("verdict")
    rows = page(single()).cells("Every comparison")[1:]
    assert all(row.endswith("not enough evidence") for row in rows)


def test_what_is_missing_is_named() -> None:
    found = page(bare())
    for part, said in (
        ("verdict", "this run has no arm sft"),
        ("verdict", "No gates are recorded."),
        ("gap", "there is no chart"),
        ("gap", "No gap is recorded"),
        ("worth", "No comparisons are recorded"),
        ("samples", "No samples are recorded"),
        ("cost", "No cost is recorded"),
        ("transfer", "What was learnt from is not recorded."),
        ("curves", "No validation curves are recorded"),
        ("curves", "No training losses are recorded"),
        ("made", "The command that made this run is not recorded."),
    ):
        assert said in found.one(part)


def test_holes_are_named() -> None:
    found = page(holed())
    assert "How much of the gap is closed cannot be told" in found.one("verdict")
    assert "No share is given for the distilled student" in found.one("gap")
    assert "LoRA | not measured" in " ".join(found.cells("Of the way"))
    assert "No cost was measured for the teacher" in found.one("cost")
    assert "No answer is recorded from the teacher, the untouched student" in found.one("samples")
    assert "how many were kept is not recorded" in page({**holed(), "generated": {"counts": {"written": 9}}}).one(
        "generated"
    )
    assert "No validation curve is recorded for the distilled student" in found.one("curves")


def test_level_with_fine_tuning() -> None:
    """'0.0 points better' would be read as a gain."""
    record = folded()
    for row in record["comparisons"]:
        if (row["b"], row["metric"]) == ("sft", "score"):
            row.update(difference=0.0, ci95=[-0.02, 0.02], p_value=1.0)
    assert "told from chance: it is level with the same student" in page(record).one("verdict")


def test_whatever_it_holds_is_text() -> None:
    """A sample is what a model wrote: markup in it must be shown, and never run."""
    html = render_report(hostile())
    assert "<script" not in html
    assert "<img" not in html
    found = Page(html)
    assert HOSTILE in " ".join(text for attrs, text in found.all("dd") if attrs.get("class") == "model")
    assert HOSTILE in found.one("made")


def test_written_beside_the_record(tmp_path: Path) -> None:
    """`tutelage report RUN` takes this road, and NaN in a record must not reach the page."""
    record = folded()
    record["gap"]["kd"] = math.nan
    (tmp_path / "result.json").write_text(json.dumps(record), encoding="utf-8")
    target = write_report(tmp_path)
    assert target == tmp_path / "report.html"
    assert "What they write" in target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine's path")
    running = Browser(program, tmp_path_factory.mktemp("language-profile"))
    yield running
    running.close()


@pytest.mark.parametrize("variant", LANGUAGE_RECORDS)
def test_fits_a_phone_quietly(browser: Browser, tmp_path: Path, variant: str) -> None:
    """At 375 pixels nothing goes beyond the edge, no texts of a chart collide, and nothing is fetched."""
    path = tmp_path / f"{variant}.html"
    path.write_text(render_report(LANGUAGE_RECORDS[variant]()), encoding="utf-8")
    browser.show(path, width=375, height=800)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(OVERLAP) < 0
    assert browser.evaluate(BEYOND) == []
    assert browser.evaluate(UNSAID) == [], "a table with columns out of sight looks complete"
    assert browser.evaluate(GAPS) == [], "a reading out of sight, broken into many lines, leaves half a screen of white"
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url == path.as_uri() or url.startswith("data:") for url in asked)
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in said] == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("variant", ["folded", "shortened", "holed"])
def test_contrast_in_both_themes(browser: Browser, tmp_path: Path, variant: str, dark: bool) -> None:
    """WCAG AA for every text in its place, marked words among them."""
    path = tmp_path / f"{variant}.html"
    path.write_text(render_report(LANGUAGE_RECORDS[variant]()), encoding="utf-8")
    browser.show(path, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    ratio, words = browser.evaluate(CONTRAST)
    assert ratio >= 4.5, words

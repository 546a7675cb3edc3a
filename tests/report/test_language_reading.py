"""The page of a language study, read by somebody in a hurry: what could be taken for something else."""

from __future__ import annotations

from typing import Any

from language_records import folded
from parsed import Page

from tutelage.report import render_report
from tutelage.report.gate_words import gate_needs
from tutelage.report.labels import certificate_words
from tutelage.report.language_words import arms_of


def page(record: dict[str, Any]) -> Page:
    return Page(render_report(record))


def test_a_legend_names_each_curve_in_full() -> None:
    """Two arms of one colour, or one cut to a word, could be taken for each other."""
    record = folded()
    kd = record["arms"]["kd"]
    for name in ("full_prompt_of_the_teacher", "reverse", "written"):
        record["arms"][name] = kd
        record["evidence"]["curves"][name] = record["evidence"]["curves"]["kd"]
    arms = [arm for arm, _ in arms_of(record).values()]
    assert len({arm.slot for arm in arms}) == len(arms)
    found = page(record)
    legend = next(text for attrs, text in found.all("ul") if attrs.get("class") == "legend")
    assert "Full prompt of the teacher" in legend
    drawn = render_report(record)
    assert 'class="leader"' not in drawn[drawn.index('id="chart-validation-t"') :].split("</figure>")[0]


def test_the_line_of_no_difference_strikes_out_no_name() -> None:
    """A line through the letters reads as a name that was crossed out."""
    found = page(folded())
    zeros = [attrs for attrs, _ in found.all("line") if attrs.get("class") == "zero"]
    tops = {float(attrs["y1"]) % 56 for attrs in zeros}
    assert zeros
    assert tops == {21.0}, "below the name, at the marker"


def test_what_would_decide_is_said_once() -> None:
    """Said twice, the second number is looked at for a difference."""
    why = "About 63 test examples in all would decide with a chance of 80%."
    assert gate_needs({"needs": {"seeds": None, "examples": 63, "why": why}}) == why
    rounded = "About 130,000 test examples in all would decide."
    assert gate_needs({"needs": {"seeds": None, "examples": 121_576, "why": rounded}}) == rounded
    assert gate_needs({"needs": {"examples": 63, "why": "With one seed."}}).startswith("To decide: about 63 test")


def test_a_slower_shorter_prompt_saves_nothing() -> None:
    """10.8 ms in place of 8.1 listed under 'saved' would be read as a gain."""
    record = folded()
    record["context"]["milliseconds"] = {"full": 8.1, "bare": 10.8}
    rows = page(record).cells("A request as the teacher")
    assert any("8.1 | 10.8 | 2.7 more" in row for row in rows)
    record["context"]["milliseconds"] = {"full": 8.1, "bare": 8.0}
    assert any("8.1 | 8.0 | none" in row for row in page(record).cells("A request as the teacher"))


def test_pages_of_one_folder_have_titles_of_their_own() -> None:
    """Nobody chose a title, and three open tabs called by the folder are one too many to know."""
    record = folded()
    record["title"] = "study6"
    record["provenance"]["command"] = "tutelage run there/arms.yaml --out runs/x"
    html = render_report(record)
    assert "<h1>study6: arms</h1>" in html
    assert "study6: arms · tutelage</title>" in html
    record["provenance"]["config"] = "task: language_model\ntitle: study6\n"
    assert "<h1>study6</h1>" in render_report(record)


def test_a_certificate_beyond_the_gradient_itself_is_told_in_words() -> None:
    """'4,260% away (±633%)' frightens and says nothing to do."""
    certificate = {
        "rows": 64,
        "relative_error": 42.6,
        "relative_bias": 5.0,
        "relative_bias_noise": 6.33,
        "form": "sampled",
    }
    said = certificate_words({"certificate": certificate})
    assert "by 42.6 times that one’s own size" in said
    assert "more draws, or more of the classes kept, lessen it" in said
    assert "%" not in said
    small = certificate_words(
        {"certificate": {**certificate, "relative_error": 0.02, "relative_bias_noise": 0.1, "relative_bias": 0.05}}
    )
    assert "is 2.00% away" in small
    assert "(±10.0%)" in small


def test_the_note_on_intervals_says_which_is_whose() -> None:
    """Three methods in a row, of eight arms and five metrics, tell nobody how the number before them was made."""
    record = folded()
    record["arms"]["untouched"]["ci_method"] = {"kl": "a way of its own", "agreement": "a way of its own"}
    said = page(record).one("arms")
    assert "a way of its own (KL, agreement of: untouched student)" in said

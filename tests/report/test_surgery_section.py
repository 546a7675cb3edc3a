"""The page's section on what was cut, and on the stage before the task."""

from typing import Any

import pytest
from example import shipped
from parsed import Page

from tutelage.report import render_report
from tutelage.report.surgery import cut_line

Json = dict[str, Any]


def row(what: str, before: Any, after: Any) -> Json:
    return {"what": what, "before": before, "after": after, "ratio": after / before if before and after else None}


def cut(**changes: Any) -> Json:
    rows = [
        row("layers", 6, 3),
        row("hidden", 384, 384),
        row("vocabulary", 30522, 8000),
        row("parameters", 22_700_000, 8_600_000),
    ]
    rows += [row("bytes", 90_800_000, 34_400_000), row("flops_per_example", 2_000_000_000, None)]
    entry = {"start": "cut from the teacher (layers 3)", "arms": ["kd", "scratch"], "assistants": ["middle"]}
    return {**entry, "rows": rows, "kept_layers": [0, 2, 5], **changes}


def page(**record: Any) -> str:
    return render_report({**shipped(), **record})


def test_the_page_shows_each_cut_with_its_arms() -> None:
    """A page without it would compare arms of different starts as if they were one."""
    html = page(
        surgery=[
            cut(),
            cut(
                start="of the teacher’s shape, its weights drawn at random",
                arms=["random"],
                assistants=[],
                kept_layers=None,
            ),
        ]
    )
    for said in (
        "What was cut",
        "Cut from the teacher (layers 3)</h3>",
        "Kept layers, counted from 0: 0, 2, 5.",
        "assistant middle",
        "30,522",
    ):
        assert said in html
    assert "8,600,000" in html
    assert "not counted" in html
    assert html.count('<h3 id="surgery-') == 2


def test_no_cut_no_section() -> None:
    """An empty section would say that something was cut of which nothing is known."""
    assert "What was cut" not in page()
    assert "Before the task" not in page()


def test_a_name_is_not_read_as_markup() -> None:
    """A model's folder may be called anything."""
    html = page(surgery=[cut(start="<script>alert(1)</script>")])
    assert "<script>alert(1)" not in html
    Page(html)


@pytest.mark.parametrize("entry", [{}, {"rows": [{"what": None}], "kept_layers": "all", "arms": None}])
def test_a_record_with_holes_still_makes_a_page(entry: Json) -> None:
    """A record of another version must not cost the whole page."""
    assert "What was cut" in page(surgery=[entry])


def test_a_cut_in_a_line() -> None:
    """What the terminal says must be the sizes that changed."""
    assert cut_line(cut()) == "layers 6 → 3, vocabulary 30,522 → 8,000, parameters 22,700,000 → 8,600,000 (38%)"


def test_the_stage_is_told_with_what_it_taught() -> None:
    """Students that began elsewhere than their teacher's layers must not be shown as if they came from there."""
    seeds = [
        {
            "seed": s,
            "seconds": 12.0,
            "before": {"accuracy": 0.1},
            "metrics": {"accuracy": 0.5 + s / 10, "perplexity": 9.5, "kl": 0.25},
        }
        for s in (0, 1)
    ]
    teacher = {"trained": False, "metrics": {"accuracy": 0.61, "perplexity": 6.0}}
    html = page(
        stage={
            "teacher": teacher,
            "students": {"student": {"seeds": seeds}, "one": {"seeds": seeds}},
            "arms": ["kd", "one"],
        }
    )
    for said in (
        "hidden words",
        "The stage’s teacher",
        "61.0%",
        "55.0%",
        "10.0%",
        "The student of one",
        "Passed by: Distilled student; one.",
    ):
        assert said in html
    assert "they did it with is gone." in html


@pytest.mark.parametrize(
    ("copied", "said"),
    [
        ((True, True), "the head they did it with, its layers copied from that teacher, is gone"),
        ((False, False), "the head they did it with, drawn at random since that teacher’s has other layers, is gone"),
        ((True, False), "copied from that teacher where it has the same layers, else drawn at random, is gone"),
    ],
)
def test_where_the_stages_head_came_from_is_told(copied: tuple[bool, bool], said: str) -> None:
    """A head that was drawn has to be learnt first: of two stages of one length that one taught less, and nobody would know why."""
    students = {name: {"seeds": [], "head_copied": one} for name, one in zip(("student", "one"), copied, strict=True)}
    assert said in page(stage={"students": students, "arms": ["kd", "one"]})


def test_what_the_cut_left_as_it_was_stands_in_a_line() -> None:
    """Four tables of eleven rows, of which most say 100%, hide the few that differ."""
    html = page(surgery=[cut()])
    assert "As before the cut: hidden width: 384." in html
    assert '<th scope="row">Hidden width</th>' not in html
    assert '<th scope="row">Layers</th>' in html


def test_a_cut_that_takes_nothing_says_so() -> None:
    """'cut from the teacher (96 wide)' of one that is 96 wide was told as a cut, to 100%."""
    whole = cut(rows=[row("hidden", 96, 96), row("parameters", 3_213_603, 3_213_603)])
    html = page(surgery=[whole])
    assert "Nothing is cut: every size is that of the model before." in html
    assert "Kept layers" not in html
    assert cut_line(whole) == "nothing is cut, every size is as before"


def test_who_skipped_the_stage_is_told() -> None:
    """Beside arms that passed it, an arm without it is another study."""
    found = {"teacher": None, "students": {}, "arms": ["kd"]}
    assert "Passed by: Distilled student. Without it: Same student, labels alone;" in page(stage=found)

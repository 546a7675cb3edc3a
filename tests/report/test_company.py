"""Teachers in company on the page: an ensemble, a chain of assistants, generations and a peer."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from companies import COMPANIES, chain, crowd, ensemble, generations, holes, no_detour
from example import shipped
from parsed import Page

from tutelage.report import render_report
from tutelage.report.charts import Road, Row, interval_chart


def page(result: dict[str, Any]) -> Page:
    return Page(render_report(result))


def test_a_plain_run_has_none_of_it() -> None:
    """Three empty sections would stand on every page that has nothing to do with them."""
    ids = [attrs["id"] for attrs, _ in page(shipped()).all("section")]
    assert not {"members", "chain", "peers"} & set(ids)


@pytest.mark.parametrize("variant", COMPANIES)
def test_structure(variant: str) -> None:
    """Whatever a record lacks: unique ids, answered references, charts with words, nothing called nan or None."""
    html = render_report(COMPANIES[variant]())
    found = Page(html)
    ids = [attrs["id"] for _, attrs in found.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        wanted = (attrs.get("aria-labelledby") or "").split() + [(attrs.get("href") or "x")[1:]] * (
            (attrs.get("href") or "").startswith("#")
        )
        assert set(wanted) <= set(ids)
    assert len(found.all("caption")) == len(found.all("table"))
    words = re.sub(r"data:[^\"]*", "", html).lower().replace("provenance", "")
    assert "nan" not in words
    assert ">none<" not in words


def test_what_mixing_was_worth() -> None:
    """(0.989 − mean 0.9774) and (0.989 − best 0.981); of 0.989 − scratch the student keeps kd − scratch."""
    result = ensemble()
    arms = result["arms"]
    arms["kd"]["mean"]["accuracy"], arms["scratch"]["mean"]["accuracy"] = 0.969, 0.939
    said = page(result).one("members")
    assert "Mixing 5 models was worth +1.2 points of accuracy (95% interval " in said
    assert "over their mean and +0.8 points of accuracy (95% interval " in said
    assert "of the 5.0 points by which the mixture leads the same student on labels alone" in said
    assert "the one student kept 3.0 points, 60% of it." in said
    assert "71 MFLOP; the student’s takes 17.8 kFLOP, 3,991 times less" in said


def test_what_mixing_was_worth_has_an_interval() -> None:
    """A gain of 0.8 points on a few hundred examples, told without its doubt, would be read as one that mixing brings.

    Square-and-add of 0.989 in [0.972, 0.996] and 0.981 in [0.968, 0.992]: 0.008 − hypot(0.017, 0.011) = −0.0122 and
    0.008 + hypot(0.007, 0.013) = 0.0228; the members' mean is 0.0036 lower, with the same half-widths.
    """
    said = page(ensemble()).one("members")
    assert "+1.2 points of accuracy (95% interval −0.9 to +2.6 at the widest, which cannot be told from chance)" in said
    assert "+0.8 points of accuracy (95% interval −1.2 to +2.3 at the widest, which cannot be told from chance)" in said
    clear = ensemble()
    for record in (clear["arms"]["teacher"], *clear["members"]):
        mean = record["mean"]["accuracy"]
        record["ci95"]["accuracy"] = [mean - 0.001, mean + 0.001]
    assert "cannot be told from chance) over" not in page(clear).one("members")
    assert "+0.8 points of accuracy (95% interval +0.7 to +0.9 at the widest)" in page(clear).one("members")
    clear["members"][0]["ci95"]["accuracy"] = None
    assert "+1.2 points of accuracy (no interval is recorded) over their mean" in page(clear).one("members")


@pytest.mark.parametrize(
    ("student", "scratch", "said"),
    [
        (0.930, 0.939, "the one student kept nothing"),
        (0.990, 0.939, "the one student kept all."),
        (0.969, 0.992, "there was nothing for the one student to keep"),
        (0.969, None, "the one student is 2.0 points below the mixture"),
    ],
)
def test_what_the_student_kept(student: float, scratch: float | None, said: str) -> None:
    """A share of a lead that is not there, or above 1, would be a number without a meaning."""
    result = ensemble()
    result["arms"]["kd"]["mean"]["accuracy"] = student
    if scratch is None:
        del result["arms"]["scratch"]
    else:
        result["arms"]["scratch"]["mean"]["accuracy"] = scratch
    assert said in page(result).one("members")


def test_a_share_that_may_be_chance_says_so() -> None:
    result = ensemble()
    result["comparisons"][0]["ci95"] = [-0.01, 0.1]
    assert "of it, which cannot be told from chance." in page(result).one("members")


def test_members_beside_their_mixture() -> None:
    """Weights as shares of the whole; the mixture's training is that of all members."""
    result = ensemble()
    result["members"][0]["weight"] = 0.6
    lines = page(result).cells("size and training time")
    assert lines[1].startswith("member-0 trained by this run with seed 0 | 43% | 97.5%96.2% to 98.6% | ")
    assert lines[2].split(" | ")[:2] == ["member-1 trained by this run with seed 1", "14%"]
    assert lines[6].startswith("The ensemble |  | 98.9%")
    assert lines[6].endswith("5,061,970 | 5 min 16 s")
    assert lines[7].startswith("Distilled student")
    assert lines[8].startswith("Same student, labels alone")


def test_every_link_with_its_gap() -> None:
    """The gap is to the model that taught it, and not to the first of the chain."""
    result = chain()
    result["chain"]["links"][3]["test"]["accuracy"] = 0.956
    result["arms"]["direct"]["mean"]["accuracy"] = 0.941
    lines = page(result).cells("Every link")
    assert lines[2] == "middle | teacher | 97.5% | 1.1 | 97.8% | 240,112 | 3.36 MFLOP | 3 min 10 s | 1,140"
    assert lines[3].startswith("small | middle | 96.6% | 0.9 | ")
    assert re.match(r"Distilled student \| small \| 95\.6%[\d.]+% to [\d.]+% \| 1\.0 ", lines[4])
    assert re.match(
        r"Same student, taught directly \| teacher \| 94\.1%.* \| 4\.5 \| — \| 9,034 \| 126 kFLOP \| 1 min 02 s",
        lines[5],
    )


def test_whether_the_detour_paid() -> None:
    said = page(chain()).one("chain")
    assert "The detour over middle → small paid: +1.5 points of accuracy against the direct road" in said
    assert "95% interval +0.4 to +2.6 points, p = 0.011, 5 seeds" in said
    assert "8 min 22 s more of training: +0.18 points a minute." in said
    assert "chosen on the validation split among 2 paths with an assistant" in said
    open_ = page(no_detour()).one("chain")
    assert "Whether the detour over middle paid cannot be told from chance: −0.2 points" in open_
    one = no_detour()
    one["chain"]["detour"] |= {"ci95": None, "why": "one seed cannot tell luck from merit"}
    said = page(one).one("chain")
    assert "Whether the detour over middle paid cannot be told: −0.2 points" in said
    assert "One seed cannot tell luck from merit." in said
    lost = no_detour()
    lost["chain"]["detour"]["paid"] = False
    assert "The detour over middle did not pay: −0.2 points" in page(lost).one("chain")


def test_points_a_minute_count_the_search() -> None:
    """Without it, an assistant that was found among ten would seem as cheap as one that was known beforehand."""
    result = chain()
    result["chain"]["links"][3] |= {"test": {"accuracy": 0.953}, "seconds": 98.0}
    result["arms"]["scratch"]["mean"]["accuracy"], result["arms"]["direct"]["mean"]["accuracy"] = 0.923, 0.943
    lines = page(result).cells("Each road to the same student")
    assert lines[2] == "The direct road | 94.3% | 1 min 02 s | +2.0 | +1.94"
    assert lines[3] == "Through the chain | 95.3% | 10 min 00 s | +3.0 | +0.30"


def test_candidates_best_first_and_the_chosen_marked() -> None:
    lines = page(chain()).cells("where the choice was made")
    assert lines[1] == "teacher → middle → small → student chosen | 95.7% | 6 min 16 s"
    assert [line.split("%")[0][-4:] for line in lines[1:]] == ["95.7", "95.1", "94.1"]
    assert "The paths that were tried" not in page(no_detour()).one("chain")


def test_roads_lead_from_teacher_to_taught() -> None:
    """Drawn to the next row instead, the direct student would seem to be taught by the one above it."""
    rows = [Row(name, "", value, None, [], "kd", "circle") for name, value in (("a", 1.0), ("b", None), ("c", 0.0))]
    write = str
    drawn = interval_chart("x", "t", "d", rows, write, roads=[Road(0, 2, "direct", "5 4"), Road(0, 1, "kd")])
    (line,) = re.findall(r'<line class="road s-direct"[^>]*>|<line class="road s-kd"[^>]*>', drawn)
    ends = {key: float(value) for key, value in re.findall(r'(x1|x2|y1|y2)="([\d.]+)', line)}
    assert ends["x1"] > 90 > 10 > ends["x2"]
    assert (ends["y1"], ends["y2"]) == (32, 144)


def test_generations_and_their_line() -> None:
    found = page(generations())
    said = found.one("peers")
    assert "Generation 0 learned from the labels alone." in said
    assert "From the first generation to the last, +2.2 points of accuracy, their intervals overlapping" in said
    lines = found.cells("each generation")
    assert lines[1:3] == ["0 | 92.4% | 91.2% to 93.4% | 1 min 01 s", "1 | 93.8% | 92.6% to 94.8% | 1 min 02 s"]
    (chart,) = [words for attrs, words in found.all("desc") if (attrs["id"] or "").startswith("chart-generations")]
    assert "Generation 3: 94.6%" in chart
    assert "Labels alone: 92." in chart


def test_the_peer_beside_the_judged() -> None:
    lines = page(generations()).cells("Test accuracy, mean over 5 seeds")
    assert [line.split(" | ")[0] for line in lines[1:]] == [
        "Student of a peer",
        "Its peer",
        "Same student, labels alone",
    ]
    assert lines[2] == "Its peer | 93.7% | 92.5% to 94.7%"


def test_what_is_missing_is_named() -> None:
    found = page(holes())
    assert "What mixing was worth cannot be told" in found.one("members")
    assert "no difference from the direct road is recorded" in found.one("chain")
    assert "on the validation split" in found.one("chain")
    assert "no gain can be put beside its time" in found.one("chain")
    assert "Its peer not measured" in found.one("peers")


def test_a_long_name_is_cut_in_the_chart_and_whole_in_the_table() -> None:
    found = page(crowd())
    long = "an assistant of middling size whose name is a sentence"
    assert long in found.one("chain")
    names = [words for attrs, words in found.all("text") if attrs.get("class") == "name"]
    assert "an assistant of middling size w…" in names
    assert long not in names


def test_markup_in_names_is_text() -> None:
    """A member or an assistant may be called anything: unescaped, it would run in the reader's browser."""
    evil = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>'
    result = ensemble()
    result |= {"chain": chain()["chain"]}
    result["arms"] |= generations()["arms"]
    result["arms"][evil] = copy.deepcopy(result["arms"]["born_again"])
    for member in result["members"]:
        member |= {"name": evil, "description": evil}
    links = result["chain"]["links"]
    result["chain"]["path"][1] = links[1]["name"] = links[2]["taught_by"] = evil
    result["chain"]["candidates"][1]["path"][1] = evil
    result["chain"] |= {"note": evil}
    result["chain"]["detour"] |= {"paid": None, "ci95": None, "why": evil}
    found = page(result)
    assert not found.all("script")
    assert all((attrs.get("src") or "").startswith("data:") for attrs, _ in found.all("img"))
    for section in ("members", "chain", "peers"):
        assert evil in found.one(section)

"""The page of a sweep: what it says won, what it draws, and that nothing in it is loaded or run."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from parsed import Page
from sweep_records import SWEEPS, begun, factorial, grid, least, search, temperatures, torn

from tutelage.errors import ConfigError, DataError
from tutelage.report import render_sweep, write_sweep_page
from tutelage.report.sweep_trials import Sweep, key_names, written


def page(record: dict[str, Any]) -> Page:
    return Page(render_sweep(record))


def places(found: Page, chart: str, slot: str) -> list[tuple[float, float]]:
    """Where the markers of a slot lie in a chart: per cent of the width, pixels from the top."""
    start = next(
        index
        for index, (tag, attrs) in enumerate(found.elements)
        if tag == "svg" and (attrs.get("aria-labelledby") or "").startswith(chart)
    )
    inside, marks = "", list[tuple[float, float]]()
    for tag, attrs in found.elements[start + 1 :]:
        if tag == "svg" and attrs.get("role") == "img":
            break
        inside = attrs.get("class") or "" if tag == "g" else inside
        if tag == "svg" and attrs.get("class") == "mark" and inside == f"s-{slot}":
            marks.append((float((attrs["x"] or "").rstrip("%")), float(attrs["y"] or "")))
    return marks


@pytest.mark.parametrize("variant", SWEEPS)
def test_structure(variant: str) -> None:
    """One h1, no level skipped, landmarks, unique ids, answered references, charts and tables with their words."""
    html = render_sweep(SWEEPS[variant]())
    assert html.startswith("<!doctype html>")
    found = Page(html)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(len(found.all(tag)) == 1 for tag in ("header", "nav", "main", "footer"))
    ids = [attrs["id"] for _, attrs in found.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        wanted = (attrs.get("aria-labelledby") or "").split() + [(attrs.get("href") or "x")[1:]] * (
            (attrs.get("href") or "").startswith("#")
        )
        assert set(wanted) <= set(ids)
    charts = [attrs for attrs, _ in found.all("svg") if attrs.get("class") == "chart"]
    for attrs in charts:
        title, description = (attrs["aria-labelledby"] or "").split()
        assert found.one(title)
        assert len(found.one(description)) > 20
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attrs.get("scope") in ("row", "col", "colgroup") for attrs, _ in found.all("th"))
    assert "nan" not in html.lower()
    assert ">None<" not in html


@pytest.mark.parametrize("variant", SWEEPS)
def test_nothing_is_loaded(variant: str) -> None:
    """One file: no script, and no address of anything that is not beside it."""
    html = render_sweep(SWEEPS[variant]())
    found = Page(html)
    assert not found.all("script", "iframe", "object", "embed", "base", "form", "img")
    for _, attrs in found.elements:
        for key in ("src", "href", "srcset", "action"):
            assert (attrs.get(key) or "#").startswith(("#", "data:")) or attrs.get(key) == "winner/report.html"
        assert not [key for key in attrs if key.startswith("on")]
    assert "url(" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_what_won_and_what_the_test_split_says() -> None:
    """The number it was chosen by is on validation; quoted alone, it would be taken for what the winner does."""
    record = grid()
    best = record["trials"][2]
    best["mean"]["accuracy"], best["ci95"]["accuracy"] = 0.958, [0.949, 0.966]
    record["scratch"]["mean"]["accuracy"] = 0.925
    record["best"] = 2
    said = page(record).one("won")
    assert said.startswith("The winner’s verdict –Hold")
    assert "Temperature 1, weight 0.9 won among 17 trials: accuracy 95.8% on the validation split" in said
    assert "(95% interval 94.9% to 96.6%), +3.3 points against labels alone." in said
    assert "it scored 94.1% (95% interval 92.1% to 95.7%), 1.7 points less than on validation." in said


def test_how_many_may_be_as_good() -> None:
    """Six trials of which three lie within the best one's interval."""
    record = temperatures()
    for found, value in zip(record["trials"], (0.95, 0.949, 0.945, 0.944, 0.93, 0.92), strict=True):
        found["mean"]["accuracy"], found["ci95"]["accuracy"] = value, [value - 0.006, value + 0.006]
    record["best"] = 0
    assert "3 of the other 5 lie within its interval and may be as good." in page(record).one("won")
    record["trials"][0]["ci95"]["accuracy"] = [0.0, 1.0]
    assert "All of the other 5 lie within its interval" in page(record).one("won")
    record["trials"][0]["ci95"]["accuracy"] = [0.944, 0.956]
    for found in record["trials"][1:]:
        found["mean"]["accuracy"] -= 0.05
    assert "No other trial lies within its interval." in page(record).one("won")


def test_less_is_better_of_nll() -> None:
    """Ranked the wrong way round, the worst trial would stand on top of the table and win."""
    record = search()
    values = {t["number"]: t["mean"]["nll"] for t in record["trials"] if t["state"] == "complete"}
    lines = page(record).cells("Validation metrics, best first")
    shown = [int(line.split(" | ")[0]) for line in lines[1:-1]]
    assert shown[0] == min(values, key=lambda number: values[number])
    assert [values[number] for number in shown] == sorted(values[number] for number in shown)
    assert "NLL against learning rate" in page(record).one("curves")


def test_a_grid_of_two_has_a_curve_for_each_value() -> None:
    """Six temperatures times three weights, one of them failed: three curves, and means where values are too many."""
    found = page(grid())
    assert [len(places(found, "chart-sweep-0", slot)) - 1 for slot in ("kd", "smoothing", "member")] == [6, 5, 6]
    across = [x for x, _ in places(found, "chart-sweep-0", "kd")[:6]]
    gaps = [after - before for before, after in itertools.pairwise(across)]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.05)
    assert gaps[2] == pytest.approx(2 * gaps[0], abs=0.05), "4 to 16 is twice as far as 1 to 2 on a logarithmic axis"
    said = found.one("curves")
    assert "One curve for each value of weight" in said
    assert "the line is the mean over temperature" in said
    assert "temperature, logarithmic" in said
    assert "weight, logarithmic" not in said


def test_one_curve_has_a_band_and_the_level() -> None:
    html = render_sweep(temperatures())
    assert len(re.findall(r'<polygon class="band s-kd"', html)) == 1
    assert len(re.findall(r'<polygon class="band faint s-scratch"', html)) == 1
    (corners,) = re.findall(r'<polygon class="band s-kd" points="([^"]*)"', html)
    assert len(corners.split()) == 2 * 6


def test_a_search_over_ranges_has_no_line() -> None:
    """Neighbours in one number differ in all the others: a line between them would show what nobody measured."""
    html = render_sweep(search())
    start = html.index('aria-labelledby="chart-sweep-1-t')
    chart = html[start : html.index("</figure>", start)]
    assert "bold" not in chart
    assert chart.count('class="whisker thin"') == 37
    assert "there is no line" in Page(html).one("curves")


def test_a_short_search_over_a_range_is_no_grid() -> None:
    """Of six trials, too, each differs from its neighbour in everything; and 2.4279 is no tick."""
    record = temperatures()
    drawn = (2.4279, 7.5667, 3.0458, 3.2264, 2.7085, 2.6722)
    for found, value in zip(record["trials"], drawn, strict=True):
        found["params"] = {"temperature": value, "weight": 0.5 if value < 3 else 0.9}
    record["search"]["space"] = {"temperature": {"low": 1.0, "high": 8.0, "log": True}, "weight": [0.5, 0.9]}
    html = render_sweep(record)
    assert 'polygon class="band s-kd' not in html
    ticks = [words for attrs, words in Page(html).all("text") if (attrs.get("class") or "").startswith("tick")]
    assert not set(ticks) & {str(value) for value in drawn}


def test_several_trials_in_a_cell_are_drawn_and_averaged() -> None:
    found = page(factorial())
    assert len(places(found, "chart-sweep-0", "kd")) == 3 * 2 + 1
    assert "the line is the mean over objective.1" in found.one("curves")
    assert "0.5 × hint (layers uniform)" in found.one("trials")


def test_parallel_coordinates() -> None:
    """A line a trial, the best last and marked at every axis; better at the right, also where less is better."""
    record = search()
    html = render_sweep(record)
    start = html.index('aria-labelledby="chart-parallel-t')
    chart = html[start : html.index("</figure>", start)]
    lines = re.findall(r'<polyline class="([^"]*)" points="([^"]*)"', chart)
    assert len(lines) == 37
    assert [kind for kind, _ in lines].index("s-kd winner") == 36
    ends = [float(points.split()[-1].split(",")[0]) for _, points in lines]
    assert ends[-1] == 1000
    assert ends[:-1] == sorted(ends[:-1])
    assert {kind for kind, _ in lines[:-1]} == {f"shade-{n}" for n in range(1, 6)}
    assert all(len(points.split()) == 6 for _, points in lines)
    assert len(places(Page(html), "chart-parallel", "kd")) == 6
    assert "together" not in [attrs["id"] for attrs, _ in page(temperatures()).all("section")]


def test_importance_largest_first() -> None:
    lines = page(search()).cells("share of what the metric varied by")
    assert [line.split(" | ")[1] for line in lines[1:]] == ["55%", "20%", "10%", "10%", "5%"]
    assert lines[1].startswith("learning rate training.learning_rate | ")


def test_every_trial_is_in_the_table() -> None:
    """37 complete, 2 running and 1 failed; what is folded away is there too."""
    found = page(search())
    lines = found.cells("Validation metrics, best first")[1:-1] + found.cells("of the other trials")[1:]
    assert len(lines) == 40
    assert [line.rsplit(" | ", 1)[1] for line in lines[-3:]] == ["running", "running", "failed"]
    assert found.cells("Validation metrics, best first")[-1].startswith("– | labels alone | ")
    assert found.cells("Validation metrics, best first")[1].endswith("won")


def test_errors_are_told_to_their_end() -> None:
    """The last lines of a traceback say what happened, the first only where it began."""
    record = grid()
    record["trials"][7]["error"] = "first line\n" + "y" * 4000 + "\nthe loss is not finite"
    said = page(record).one("failed")
    assert said.startswith("What failed Trial 7: temperature 4, weight 0.5 …y")
    assert said.endswith("the loss is not finite")
    assert "first line" not in said
    assert "failed" not in [attrs["id"] for attrs, _ in page(temperatures()).all("section")]


def test_what_is_missing_is_named() -> None:
    assert "No trial is complete yet" in page(begun()).one("won")
    assert "has not been run as a whole study yet" in page(begun()).one("won")
    assert "on labels alone was not trained" in page(begun()).one("trials")
    assert "nothing to draw" in page(begun()).one("curves")
    assert "No trial has begun yet." in page(least()).one("trials")
    html = render_sweep(torn())
    assert "its accuracy on the test split is not recorded" in html
    assert "elsewhere" not in html


def test_a_trial_without_the_number_is_not_drawn_at_nought() -> None:
    record = grid()
    record["trials"][2]["params"] = {"objective.0.temperature": 1}
    found = page(record)
    assert min(x for x, _ in places(found, "chart-sweep-1", "kd")) > 12
    assert len(places(found, "chart-sweep-1", "kd")) == 16


def test_markup_in_the_record_is_text() -> None:
    """A key, a value or an error could otherwise run in the browser of whoever opens the page."""
    evil = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>'
    record = grid()
    for found in record["trials"]:
        found["params"] = {f"{evil}.{evil}": evil + str(found["number"]), **found["params"]}
    record["trials"][7]["error"] = evil
    record["search"]["space"] = {evil: [evil], **record["search"]["space"]}
    record["workers"][0]["host"] = evil
    record |= {"title": evil, "tutelage": evil, "config_sha256": evil}
    record["winner"] |= {"folder": f"winner/{evil}"}
    record["search"] |= {"sampler": evil}
    found = page(record)
    assert not found.all("script", "img")
    assert evil in found.one("failed")
    assert evil in found.one("made")
    assert not [attrs for attrs, _ in found.all("a") if "report.html" in (attrs.get("href") or "")]


def test_names_and_values() -> None:
    assert key_names(["objective.0.temperature", "training.learning_rate"]) == ["temperature", "learning rate"]
    assert key_names(["objective.0.weight", "objective.1.weight"]) == ["objective.0.weight", "objective.1.weight"]
    assert key_names(["objective.1"]) == ["objective.1"]
    assert [written(value) for value in (4, 0.5, 1e-5, True, None, "kl", 0.00031)] == [
        "4",
        "0.5",
        "1.0×10⁻⁵",
        "true",
        "none",
        "kl",
        "0.00031",
    ]
    assert written([{"term": "kl", "weight": 0.9}, {"term": "cross_entropy"}]) == "0.9 × kl + cross_entropy"
    assert len(written(["x" * 100])) == 48


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1, 2, 4, 16, 64], True),
        ([1, 2, 4], True),
        ([0.1, 0.5, 0.9], False),
        ([0.1, 0.3, 0.5, 0.7, 0.9], False),
        ([0, 1, 4], False),
        ([0.0001, 0.0003, 0.001], True),
        ([10, 20, 30, 40, 50], False),
    ],
)
def test_which_axis_is_logarithmic(values: list[float], log: bool) -> None:
    """On a linear axis T = 1, 2 and 4 lie on top of one another beside 64."""
    trials = [{"number": n, "params": {"x": value}, "state": "running"} for n, value in enumerate(values)]
    (key,) = Sweep({"search": {"space": {"x": values}}, "trials": trials}).keys
    assert key.log is log


def test_write_sweep_page(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(grid()), encoding="utf-8")
    (tmp_path / "sweep.html").write_text("an older page", encoding="utf-8")
    assert write_sweep_page(tmp_path) == tmp_path / "sweep.html"
    assert (tmp_path / "sweep.html").read_text(encoding="utf-8") == render_sweep(grid())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.html", "sweep.json"]


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep\.json in"):
        write_sweep_page(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"search": {', "not valid JSON"),
        (b"[]", "top level is list"),
        (b"{}", "'search' must be an object"),
        (b'{"tutelage": "9", "search": {}, "trials": [3]}', "tutelage 9.*'trials' must be a list"),
    ],
)
def test_unreadable_record(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        write_sweep_page(tmp_path)
    assert not (tmp_path / "sweep.html").exists()

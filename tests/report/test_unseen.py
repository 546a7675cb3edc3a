"""The section on classes that the transfer set did not show."""

from __future__ import annotations

import copy
from typing import Any

from example import shipped
from parsed import Page

from tutelage.report import render_report


def _one(before: float, after: float) -> dict[str, Any]:
    return {
        "before": {"mean": before, "ci95": [before - 0.01, before + 0.01]},
        "after": {"mean": after, "ci95": [after - 0.01, after + 0.01]},
    }


def _with(classes: list[str]) -> dict[str, Any]:
    result = copy.deepcopy(shipped())
    arm = {
        "offsets": [[3.5]],
        "recall": _one(0.614, 0.921),
        "accuracy": _one(0.871, 0.943),
        "gain": {"difference": 0.072, "ci95": [0.06, 0.084], "metric": "accuracy"},
    }
    result["prior_correction"] = {
        "classes": classes,
        "test_examples": 101,
        "method": "on validation",
        "arms": {"kd": arm, "scratch": {**arm, "recall": None, "gain": {}}},
    }
    return result


def test_before_and_after_stand_side_by_side() -> None:
    """A corrected accuracy alone would hide that the student as trained hardly ever says the class."""
    html = render_report(_with(["3 & <up>"]))
    (words,) = [" ".join(words.split()) for attrs, words in Page(html).all("section") if attrs["id"] == "unseen"]
    for said in (
        "3 & <up>",
        "61.4%",
        "92.1%",
        "87.1%",
        "94.3%",
        "7.2 points",
        "6.0 to +8.4",
        "101 test examples",
        "A class that",
    ):
        assert said in words, said
    assert "no interval" in words


def test_several_classes_and_none() -> None:
    """A section about nothing would suggest that something was wrong."""
    assert "Classes that the transfer set did not show" in render_report(_with(["1", "2"]))
    assert 'id="unseen"' not in render_report(shipped())

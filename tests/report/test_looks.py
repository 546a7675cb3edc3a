"""Arms of the user's own, told apart: by everybody on a screen, by the colour-blind, and on a grey print."""

from __future__ import annotations

import copy
import itertools
import math
import re
from importlib.resources import files
from typing import Any

import pytest
from example import shipped

from tutelage.report import render_report
from tutelage.report.charts import SHAPES, ticks, up_to_a_tick
from tutelage.report.looks import COLOURS, own_look
from tutelage.report.words import ARMS

#: How the three kinds of colour blindness mix linear red, green and blue (Machado, Oliveira & Fernandes 2009, severity 1).
BLIND = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
#: From linear red, green and blue to CIE XYZ over the white point D65.
XYZ = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0177, 0.1095, 0.8729))


def mixed(rows: Any, values: Any) -> list[float]:
    return [sum(weight * value for weight, value in zip(row, values, strict=True)) for row in rows]


def lab(colour: str, kind: str) -> list[float]:
    """CIELAB of ``#rrggbb`` as somebody sees it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    seen = [min(max(value, 0.0), 1.0) for value in mixed(BLIND[kind], linear)]
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in mixed(XYZ, seen))
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_of_own_arms_are_told_apart_by_the_colour_blind(theme: str) -> None:
    """Two lines of one colour to one man in twelve, whose names at the ends lie far from where they cross."""
    css = (files("tutelage.report") / "style.css").read_text(encoding="utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    colours = blocks[0] if theme == "light" else blocks[1]
    slots = [*COLOURS, "teacher", "kd", "scratch", "smoothing"]
    pairs = [(a, b) for a, b in itertools.combinations(slots, 2) if a in COLOURS or b in COLOURS]
    for kind, (a, b) in itertools.product(BLIND, pairs):
        apart = math.dist(lab(colours[a], kind), lab(colours[b], kind))
        assert apart > 15, (kind, a, b, apart)


def test_no_two_own_arms_look_alike() -> None:
    """All had one colour, one marker and one dash in every chart."""
    looks = [own_look(place) for place in range(42)]
    assert len({(slot, shape) for slot, shape, _ in looks}) == 42
    first = looks[: len(COLOURS)]
    known = [(arm.shape, arm.dash) for arm in ARMS.values()]
    for part in (0, 1, 2):
        assert len({look[part] for look in first}) == len(COLOURS)
    assert not {shape for _, shape, _ in looks} & {shape for shape, _ in known}
    assert not {dash for _, _, dash in looks} & {dash for _, dash in known}
    assert {shape for _, shape, _ in looks} <= set(SHAPES)


def test_an_arm_looks_the_same_in_all_of_a_page() -> None:
    """A line could not be found again in the table, or would be taken for another arm's."""
    result = shipped()
    curves = result["evidence"]["curves"]
    for name in ("first", "second", "third"):
        result["arms"][name] = copy.deepcopy(result["arms"]["scratch"])
        row = next(row for row in result["comparisons"] if row["b"] == "scratch" and row["metric"] == "accuracy")
        result["comparisons"].append({**row, "b": name})
    for name in ("third", "second"):  # the first has no curve, and the others come in another order
        curves[name] = copy.deepcopy(curves["scratch"])
    html = render_report(result)
    for place, name in enumerate(("first", "second", "third")):
        slot = own_look(place)[0]
        groups = re.findall(r'<g class="s-([\w-]+)">(?:(?!<g ).)*?<text class="name"[^>]*>(?:against )?' + name, html)
        assert groups, name
        assert set(groups) == {slot}
    dashes = set(re.findall(r'<polyline class="s-own-(\d)"[^>]*stroke-dasharray="([^"]+)"', html))
    assert dashes == {("2", own_look(1)[2]), ("3", own_look(2)[2])}


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.128), (0.0, 1.07), (0.0, 0.96), (-0.4, 2.51), (0.0, 5.0), (0.25, 0.967), (0.35, 0.446)]
)
def test_an_axis_ends_at_a_tick(low: float, high: float) -> None:
    """The highest values of a loss stood above all ticks, at the plot's upper edge: how high they were could not be read."""
    top = up_to_a_tick(low, high)
    assert high <= top <= high + (high - low)
    assert ticks(low, top)[-1] == pytest.approx(top)

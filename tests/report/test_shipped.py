"""The section on artefacts: its structure and words, and what a damaged ``shipped.json`` leads to."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from example import one_seed, rejected, shipped
from parsed import Page
from shipments import SHIPMENTS, check, hold, mobile, one, parity, reject, several, timed, unmeasured

from tutelage.errors import ConfigError, DataError
from tutelage.report import read_records, render_report, write_report
from tutelage.report.artefacts import bulk, single, standings
from tutelage.report.bubbles import LARGEST, Bubble, bubble_chart
from tutelage.report.gate_words import gate_needs
from tutelage.report.panes import log_ticks
from tutelage.report.words import agreement_text, figures, money, scientific, times


def page(exported: dict[str, Any], run: dict[str, Any] | None = None) -> Page:
    """The page, with a space at the end of every cell, so that neighbours are words of their own."""
    return Page(re.sub(r"</(td|th|p|span|b)>", r" </\1>", render_report(run or shipped(), exported)))


def rows_of(found: Page, caption: str) -> list[str]:
    """The texts of the rows of the table whose caption begins like that."""
    (words,) = [words for _, words in found.all("table") if words.startswith(caption)]
    return [row for _, row in found.all("tr") if row in words]


def test_nothing_shipped_is_no_section() -> None:
    """A heading over nothing would read as an artefact that was lost."""
    for exported in (None, {"artefacts": {}}):
        html = render_report(shipped(), exported)
        assert "As shipped" not in html
        assert "from result.json alone" in html
    assert "from result.json and shipped.json" in render_report(shipped(), one())


@pytest.mark.parametrize("variant", SHIPMENTS)
def test_structure(variant: str) -> None:
    """The section follows the verdict and leads the evidence; ids, headings, captions and scopes hold as on the rest of the page."""
    html = render_report(shipped(), SHIPMENTS[variant]())
    found = Page(html)
    assert [attrs["id"] for attrs, _ in found.all("section")][:3] == ["verdict", "shipped", "arms"]
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in found.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        assert set((attrs.get("aria-labelledby") or "").split()) <= set(ids)
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attrs.get("scope") in ("row", "col", "colgroup") for attrs, _ in found.all("th"))
    assert "nan" not in re.sub(r"data:[^\"]*", "", html).lower().replace("provenance", "")
    assert "None" not in found.one("shipped")


def test_each_decision_with_its_reason() -> None:
    words = page(reject()).one("shipped")
    assert "ship onnx All 5 gates passed." in words
    assert "reject onnx-int8 Failed: accuracy lost in the worst class." in words
    assert "not checked onnx It answers as the trained student does in all 6 cases." in page(one()).one("shipped")
    broken = page(SHIPMENTS["failed"]()).one("shipped")
    assert "no parity onnx At batch 7 a logit is 0.2 from the trained student's" in broken
    assert "ship" not in broken.replace("As shipped", "")


def test_gates_say_what_they_need() -> None:
    """Without it, "hold" sends a reader away without telling how far."""
    assert "To decide: about 2,140 test examples in all. The interval must shrink" in page(hold()).one("artefact-1")
    assert "To decide: about 3 seeds or 900 test examples in all." in page(reject()).one("artefact-1")
    run = one_seed()
    run["verdict"]["gates"][0]["needs"] = {
        "seeds": 4,
        "examples": None,
        "why": "With one seed nothing is known of the others.",
    }
    assert "To decide: about 4 seeds in all. With one seed" in Page(render_report(run)).one("verdict")
    assert (
        gate_needs({"needs": {"seeds": 1, "examples": 12.2}}) == "To decide: about 1 seed or 13 test examples in all."
    )
    assert gate_needs({"needs": {"seeds": None, "examples": None, "why": "Nothing would."}}) == "Nothing would."
    assert gate_needs({"needs": None}) == ""


def test_every_gate_of_an_artefact_is_shown() -> None:
    exported = reject()
    words = page(exported).one("artefact-1")
    for gate in exported["artefacts"]["onnx-int8"]["check"]["gates"]:
        assert gate["why"] in words
    assert "limit: at most 2 points" in words
    assert "limit: at most 1%" in words
    assert "parity with the trained student It gives the trained student's answer. 99.7% alike limit: none" in words
    assert "3.6×10⁻⁷ limit: at most 1.0×10⁻⁴" in page(exported).one("artefact-0")


def test_side_by_side() -> None:
    """Each number in its own row: teacher, the trained student of the exported seed, each artefact."""
    run = shipped()
    run["arms"]["kd"]["seeds"][0]["metrics"] |= {"accuracy": 0.9721, "nll": 0.12, "ece": 0.031}
    found = page(several(), run)
    answers = rows_of(found, "What they answer")
    assert len(answers) == 1 + 4
    assert answers[2] == "Trained student PyTorch, seed 0 97.2% one seed 0.120 0.031 — —"
    assert answers[4] == "onnx-int8 ONNX int8, seed 0 96.9% 94.6% to 98.3% 0.119 0.016 0.310 99.7%"
    costs = rows_of(found, "What they take")
    assert costs[1].startswith("Teacher as trained 605 kB 0.231 ms 0.224 to 0.240 — ")
    ran = "9.14 kB 66× smaller 0.0240 ms 0.0232 to 0.0249 9.6× faster 421,000/s 197 MB 171 MB without it — 0.000532 USD"
    assert costs[4] == f"onnx-int8 ONNX int8, seed 0 {ran}"
    assert [line.split(" without it ")[1].split("FLOP")[0] for line in costs[1:4]] == ["2.66 M", "9.47 k", "9.47 k"]
    assert "cost at 0.09 USD an hour" in costs[0] + found.one("costs-c")


def test_an_unchecked_artefact_is_shown_on_validation() -> None:
    """Validation numbers beside test numbers, unsaid, would compare two different exams; the ECE is that of what is shipped."""
    found = page(one())
    answers = rows_of(found, "What they answer")
    assert "on validation" not in answers[1]
    assert all("on validation" in row for row in answers[2:])
    assert "0.096 0.013" in answers[3]
    assert "0.101 0.024" in answers[2]
    assert "Not in the plot: Teacher" in found.one("shipped")
    assert "the line through it" not in found.one("shipped")
    assert "the line through it the 95% interval" in page(several()).one("shipped")
    unhelped = one()
    unhelped["artefacts"]["onnx"]["calibration"]["helps"] = False
    assert "0.103 0.025" in rows_of(page(unhelped), "What they answer")[3]


def test_calibration_before_and_after() -> None:
    """Beside the temperature of 1 that is kept, the numbers of the one that was tried would be a riddle."""
    rows = rows_of(page(reject()), "On validation examples")
    assert rows[1:] == [
        "onnx 1.31 stored with it 0.103 0.096 0.025 0.013",
        "onnx-int8 0.768 not used 0.103 0.096 0.025 0.013",
    ]


def test_seeds_are_not_mixed_up() -> None:
    """An artefact of another seed stands beside its own student, or parity would seem broken."""
    run, exported = shipped(), mobile()
    run["arms"]["kd"]["seeds"][0]["metrics"]["accuracy"] = 0.5
    exported["artefacts"]["safetensors"]["validation"]["trained"]["accuracy"] = 0.25
    found = {(row.key, row.about): row for row in standings(run, exported)}
    assert found["student", "PyTorch, seed 0"].accuracy == 0.5
    assert found["student", "PyTorch, seed 2"].accuracy == 0.25
    run["arms"]["kd"]["seeds"][2]["metrics"]["accuracy"] = 0.125
    exported["artefacts"]["safetensors"]["check"] = check()
    checked = {(row.key, row.about): row for row in standings(run, exported)}
    assert checked["student", "PyTorch, seed 2"].accuracy == 0.125
    assert [row.key for row in standings(run, exported, only="safetensors")] == ["teacher", "student", "safetensors"]


def test_what_is_missing_is_named() -> None:
    words = page(unmeasured()).one("shipped")
    assert "Latency, throughput and memory were not measured." in words
    assert "There is nothing to plot" in words
    assert "Not judged yet" in words
    holed = page(SHIPMENTS["holed"]()).one("shipped")
    assert "an artefact whose name is far too long | for any <b>table</b>" in holed
    bare = one()
    bare["artefacts"]["onnx"].pop("parity")
    assert "No parity with the trained student is recorded." in page(bare).one("shipped")
    no_price = page(one())
    assert "Cost" not in " ".join(words for _, words in no_price.all("th") if "million" in words)


def test_slices_that_lose_most_come_first() -> None:
    found = page(several())
    (first, *_) = [words for attrs, words in found.all("tr") if attrs.get("class") == "weak" and "loses" in words]
    assert first == "8 loses 36 88.4% 97.0% 8.6 1.2 to 16.0"
    words = found.one("artefact-1")
    assert "The other 2 slices by class" in words
    assert words.index("left-handed") < words.index("right-handed") < words.index("unknown 0 — — — no interval")


def test_one_model_is_not_asked_for_seeds() -> None:
    """Read as a study's, every comparison of an artefact would be "not enough evidence"; a control of one seed is."""
    exported = several()
    words = page(exported).one("artefact-0")
    assert "the teacher accuracy −1.7 points −3.1 to −0.3 points 0.018 worse" in words
    assert "the trained student accuracy −0.3 points −0.8 to +0.2 points 0.018 cannot be told" in words
    assert "labels alone accuracy +3.2 points +1.2 to +5.2 points 0.018 better" in words
    exported["artefacts"]["onnx"]["check"]["comparisons"][2]["seeds"] = 1
    assert "+1.2 to +5.2 points 0.018 not enough evidence" in page(exported).one("artefact-0")


def test_the_search_for_int8_is_told() -> None:
    words = page(several()).one("artefact-1")
    assert "Dynamic, a scale for each channel." in words
    assert "Stays in float: /head/MatMul." in words
    assert "every layer 0.021 98.1% 96.7% 7.91 kB" in words
    assert "How it was quantised" not in page(several()).one("artefact-0")
    assert "Nothing stays in float." in page(mobile()).one("artefact-1")


def test_parity_case_by_case() -> None:
    exported = one()
    exported["artefacts"]["onnx"]["parity"] = parity(3.6e-7, lengths=True)
    words = page(exported).one("artefact-0")
    assert "1 11 no 1.8×10⁻⁷ 3.6×10⁻⁸ 100%" in words
    assert "3 17 yes" in words
    assert "A logit may differ by 1.0×10⁻⁴." in words
    assert "no logit has a tolerance" in page(several()).one("artefact-1")


def test_the_machine_is_named() -> None:
    words = page(one()).one("shipped")
    assert "Measured on a processor with 2 cores; 2 cores; avx2, fma, avx512f." in words
    assert "no instructions for int8" in words
    assert "onnx 2 32 — " in words


def test_conditions() -> None:
    """Latencies of different lengths in one column would make the one with the shorter texts the faster model."""
    measured = {
        "rows": [
            timed("a", 1.0, threads, batch, length) for threads in (1, 4) for batch in (1, 8) for length in (16, 64)
        ]
    }
    assert str(single({"measured": measured})) == "batch 1, 1 thread, length 64"
    assert str(bulk({"measured": measured})) == "batch 8, 4 threads, length 64"
    assert single({}) is None


def test_markup_in_the_record_is_text() -> None:
    """Unescaped, an artefact's name or a slice could run as code in the browser of whoever opens the page."""
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return value + evil if isinstance(value, str) else value

    exported = reject()
    its = exported["artefacts"]["onnx-int8"]
    check = its["check"]
    for row in check["slices"]["writer"]:
        row["slice"] = evil
    check["slices"][evil] = check["slices"]["writer"]
    check["comparisons"], check["gates"] = poisoned(check["comparisons"]), poisoned(check["gates"])
    for key in ("parity", "quantisation", "calibration", "format", "precision", "seed"):
        its[key] = poisoned(its[key])
    exported["artefacts"] = {evil: its}
    exported["measured"]["cpu"] = poisoned(exported["measured"]["cpu"])
    exported["measured"]["price"]["currency"] = evil
    found = page(exported)
    assert not found.all("script")
    assert len(found.all("img")) == len(Page(render_report(shipped())).all("img"))
    assert found.one("shipped").count(evil) > 20


def test_area_is_bytes_and_small_circles_are_on_top() -> None:
    """A radius in proportion to the bytes would show a tenfold saving as a hundredfold one."""
    bubbles = [Bubble(str(size), "", "", 0.1 * size, 0.9, None, size, "kd") for size in (1.0, 4.0, 100.0)]
    drawn = str(bubble_chart("x", "t", "d", bubbles, "ms", (str, str)))
    radii = [float(found) for found in re.findall(r' r="([\d.]+)"', drawn)]
    assert radii == sorted(radii, reverse=True)
    assert radii == [LARGEST, pytest.approx(LARGEST / 5, abs=0.05), pytest.approx(LARGEST / 10, abs=0.05)]


@pytest.mark.parametrize(("low", "high"), [(0.009, 0.25), (0.1, 0.21), (9.0, 11.0), (1.0, 40_000.0), (3e-4, 5.0)])
def test_log_ticks(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 5
    assert low <= min(found)
    assert max(found) <= high
    assert found == sorted(found)
    assert all(float(f"{tick:.3g}") == pytest.approx(tick) for tick in found)


def test_numbers_in_words() -> None:
    assert [figures(value) for value in (0.02134, 9.6, 48_123.0, 99.96, 0.9996, 0)] == [
        "0.0213",
        "9.60",
        "48,100",
        "100",
        "1.00",
        "0",
    ]
    assert [scientific(value) for value in (3.64e-7, 0.02, 0)] == ["3.6×10⁻⁷", "0.0200", "0"]
    assert [money("0.09", currency) for currency in ("$", "USD", "")] == ["$0.09", "0.09 USD", "0.09"]
    # an agreement that is not complete is not written as complete
    assert [agreement_text(value) for value in (1, 0.99996, 0.9971, None)] == ["100%", "99.996%", "99.7%", "—"]
    assert [times(share, "faster") for share in (0.1, 2.0, 1.0, None)] == [
        "10× faster",
        "2.0× slower",
        "about the same",
        "not known",
    ]


def test_written_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(rejected()), encoding="utf-8")
    (tmp_path / "shipped.json").write_text(json.dumps(several()), encoding="utf-8")
    assert write_report(tmp_path).read_text(encoding="utf-8") == render_report(rejected(), several())
    assert read_records(tmp_path) == (rejected(), several())
    (tmp_path / "shipped.json").unlink()
    assert read_records(tmp_path) == (rejected(), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"artefacts": {', r"shipped\.json is not valid JSON.*run `tutelage export`"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "top level is list"),
        (b"{}", "'artefacts' must be an object"),
        (b'{"artefacts": {"onnx": 3}}', "'artefacts' must be an object"),
        (b'{"artefacts": {"onnx": {"check": {"decision": "maybe"}}}}', r"artefacts\.onnx\.check\.decision' is 'maybe'"),
        (b'{"artefacts": {"onnx": {"check": 3}}}', r"check\.decision' is None"),
        (b'{"artefacts": {}, "measured": []}', "'measured' is list"),
    ],
)
def test_unreadable_record(tmp_path: Path, content: bytes, message: str) -> None:
    """A page without its section would say that nothing was shipped."""
    (tmp_path / "result.json").write_text(json.dumps(shipped()), encoding="utf-8")
    (tmp_path / "shipped.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "shipped.json").write_text(json.dumps(several()), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no result\.json"):
        write_report(tmp_path)


def test_the_records_are_left_alone() -> None:
    """A page that sorted the record in place would change what is written after it."""
    run, exported = shipped(), reject()
    before = copy.deepcopy((run, exported))
    render_report(run, exported)
    assert (run, exported) == before

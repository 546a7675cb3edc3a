"""Names, numbers and sentences in plain English: what the page says, without how it looks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tutelage.report.looks import own_look
from tutelage.report.record import Record, interval, mapping, number, records, text

Unit = Literal["share", "nats", "plain"]
Figures = Literal["fixed", "fine", "three"]
Reading = Literal["better", "worse", "chance", "unproven"]

MISSING = "—"
#: Below this p-value (and with an interval clear of zero) a difference is told apart from chance.
ALPHA = 0.05


@dataclass(frozen=True)
class Metric:
    """How a metric is named and written; a share (0 to 1) is written in per cent and its differences in points.

    Any other has three decimals; with ``fine`` figures three digits that count where it is below 0.1, with ``three`` everywhere.
    """

    name: str
    unit: Unit
    higher_is_better: bool
    figures: Figures = "fixed"


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "share", True),
    "macro_f1": Metric("macro-F1", "share", True),
    "nll": Metric("NLL", "nats", False),
    "brier": Metric("Brier score", "plain", False),
    "ece": Metric("ECE", "plain", False),
    "agreement": Metric("agreement", "share", True),
    "kl": Metric("KL", "nats", False),
    "negative_flips": Metric("negative flips", "share", False),
    "positive_flips": Metric("positive flips", "share", True),
}


@dataclass(frozen=True)
class Arm:
    """How an arm is named (in a heading, in a sentence, after "against", beside a curve) and drawn (colour slot, shape, dashes)."""

    key: str
    name: str
    phrase: str
    versus: str
    short: str
    slot: str
    shape: str
    dash: str


ARMS: dict[str, Arm] = {
    "teacher": Arm("teacher", "Teacher", "the teacher", "the teacher", "teacher", "teacher", "diamond", "9 3 2 3"),
    "kd": Arm(
        "kd", "Distilled student", "the distilled student", "the distilled student", "distilled", "kd", "circle", ""
    ),
    "scratch": Arm(
        "scratch",
        "Same student, labels alone",
        "the same student trained on labels alone",
        "labels alone",
        "labels alone",
        "scratch",
        "square",
        "7 3",
    ),
    "label_smoothing": Arm(
        "label_smoothing",
        "Same student, label smoothing",
        "the same student trained with label smoothing",
        "label smoothing",
        "smoothing",
        "smoothing",
        "triangle",
        "2 3",
    ),
    "direct": Arm(
        "direct",
        "Same student, taught directly",
        "the same student taught directly by the teacher",
        "the direct road",
        "direct",
        "direct",
        "down",
        "6 2 1 2",
    ),
    "born_again": Arm(
        "born_again",
        "Born-again student",
        "the same student taught by its own last generation",
        "the born-again student",
        "born again",
        "born",
        "saltire",
        "1 2 4 2",
    ),
    "mutual": Arm(
        "mutual",
        "Student of a peer",
        "the same student taught by a peer and no teacher",
        "mutual learning",
        "mutual",
        "mutual",
        "bow",
        "9 2",
    ),
}


def arm_named(key: str, place: int = 0) -> Arm:
    """The arm's names and looks; one that is not among the standard arms goes by its own key.

    Args:
        key: as the record calls it.
        place: of an arm of the user's own, how many of these stand before it.
    """
    plain = key.replace("_", " ")
    return ARMS.get(key) or Arm(key, plain, f"the arm “{plain}”", plain, plain[:14], *own_look(place))


def arms_named(result: Record) -> Callable[[str], Arm]:
    """Gives the arms of a page by their keys, each with the same looks in all of its charts."""
    own = [key for key in mapping(result.get("arms")) if key not in ARMS]
    places = {key: place for place, key in enumerate(own)}
    return lambda key: arm_named(key, places.get(key, len(own)))


def metric_named(key: str) -> Metric:
    """The metric's name and unit; an unknown one is a plain number of which more is better."""
    return METRICS.get(key) or Metric(key.replace("_", " "), "plain", True)


def decimal(value: float, places: int, signed: bool = False) -> str:
    """A number with at least ``places`` decimals, more where it would read as 0 and is not; a true minus sign."""
    for digits in range(places, places + 4):
        written = f"{abs(value):,.{digits}f}"
        if value == 0 or float(written.replace(",", "")) != 0:
            break
    else:
        written = scientific(abs(value))
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    return sign + written


def amount(metric: Metric, value: float | None) -> str:
    """A metric's value with its unit, or a dash."""
    if value is None:
        return MISSING
    return f"{decimal(100 * value, 1)}%" if metric.unit == "share" else _plain(metric, value)


def difference(metric: Metric, value: float, signed: bool = True, unit: bool = True) -> str:
    """A difference between two values of a metric: points for a share, nats for a log-loss."""
    if metric.unit == "share":
        return decimal(100 * value, 1, signed) + (" points" if unit else "")
    return _plain(metric, value, signed) + (" nats" if unit and metric.unit == "nats" else "")


def _plain(metric: Metric, value: float, signed: bool = False) -> str:
    """A number that is no share, as its metric is written."""
    if metric.figures == "fixed" or (metric.figures == "fine" and abs(value) >= 0.1):
        return decimal(value, 3, signed)
    if value == 0:
        return "0"
    return ("−" if value < 0 else "+" if signed else "") + figures(abs(value))


def p_value(p: float | None) -> str:
    """``p = 0.012``, or ``p < 0.001``, or nothing where there is none; a line never breaks within."""
    if p is None:
        return ""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.{3 if p < 0.1 else 2}f}"


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``, ``1,168 examples``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def bytes_text(value: float) -> str:
    """A size in decimal units: 4,050,000 bytes is 4.05 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:,.0f} B"


def flops_text(value: float) -> str:
    """A count of floating-point operations: 2.1 MFLOP."""
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:,.0f} FLOP"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: ``4.2 s``, ``1 min 33 s``, ``1 h 06 min``."""
    if seconds is None:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def reading(comparison: Record) -> Reading:
    """What a comparison proves. An interval that touches zero, or a single seed, never proves anything."""
    ci, p, seeds = interval(comparison.get("ci95")), number(comparison.get("p_value")), number(comparison.get("seeds"))
    if ci is None or number(comparison.get("difference")) is None or (seeds is not None and seeds < 2):
        return "unproven"
    if ci[0] <= 0 <= ci[1] or (p is not None and p >= ALPHA):
        return "chance"
    better = metric_named(text(comparison.get("metric"))).higher_is_better
    if isinstance(comparison.get("higher_is_better"), bool):
        better = bool(comparison["higher_is_better"])
    return "better" if (ci[0] > 0) == better else "worse"


def find_comparison(result: Record, a: str, b: str, metric: str = "accuracy") -> Record | None:
    """The comparison of two arms in a metric, or None where the record has none."""
    for found in records(result.get("comparisons")):
        if (found.get("a"), found.get("b"), found.get("metric")) == (a, b, metric):
            return found
    return None


def evidence(comparison: Record, named: Callable[[str], Metric] = metric_named) -> str:
    """``95% interval +3.1 to +6.7 points, p = 0.002, 5 seeds × 359 test examples``: what a difference rests on."""
    metric, ci = named(text(comparison.get("metric"))), interval(comparison.get("ci95"))
    parts: list[str] = []
    if ci is not None:
        parts.append(f"95% interval {difference(metric, ci[0], unit=False)} to {difference(metric, ci[1])}")
    parts.append(p_value(number(comparison.get("p_value"))))
    counts = [
        plural(int(count), noun)
        for count, noun in (
            (number(comparison.get("seeds")), "seed"),
            (number(comparison.get("examples")), "test example"),
        )
        if count is not None
    ]
    parts.append(" × ".join(counts))
    return ", ".join(part for part in parts if part)


def headline(result: Record) -> str:
    """One sentence on what the teacher was worth, made from the comparison of the distilled student with its control."""
    found = find_comparison(result, "kd", "scratch")
    value = number(found.get("difference")) if found else None
    if found is None or value is None:
        return (
            "What the teacher was worth cannot be told: this run has no control arm, "
            "the same student trained on labels alone, to compare with."
        )
    metric = METRICS["accuracy"]
    gain, control, basis = difference(metric, value), ARMS["scratch"].phrase, evidence(found)
    match reading(found):
        case "better":
            return f"Distillation is worth {gain} of accuracy over {control} ({basis})."
        case "worse":
            return f"Distillation is worse: it costs {difference(metric, abs(value))[1:]} of accuracy against {control} ({basis})."
        case "chance":
            return f"Distillation gained nothing that can be told from chance: {gain} of accuracy against {control} ({basis})."
        case "unproven":
            seeds = number(found.get("seeds"))
            why = "one seed proves nothing" if seeds is not None and seeds < 2 else "there is no interval around it"
            return f"Not enough evidence: the distilled student scored {gain} of accuracy against {control}, but {why} ({basis})."


def against_teacher(result: Record) -> str:
    """How far the student is from its teacher, and how much smaller and faster it is; empty where nothing is known."""
    arms = mapping(result.get("arms"))
    teacher, kd = (number(mapping(mapping(arms.get(a)).get("mean")).get("accuracy")) for a in ("teacher", "kd"))
    costs = [mapping(mapping(result.get("cost")).get(who)) for who in ("student", "teacher")]
    parts: list[str] = []
    if teacher is not None and kd is not None:
        gap = kd - teacher
        side = "the same as" if gap == 0 else "below" if gap < 0 else "above"
        parts.append(
            f"The student’s accuracy, {amount(METRICS['accuracy'], kd)}, is "
            + ("" if gap == 0 else difference(METRICS["accuracy"], abs(gap), signed=False) + " ")
            + f"{side} its teacher’s"
        )
    sizes = [number(cost.get("parameters")) for cost in costs]
    speeds = [number(mapping(cost.get("latency_ms")).get("p50")) for cost in costs]
    ratios: list[str] = []
    if sizes[0] is not None and sizes[1]:
        ratios.append(f"{decimal(100 * sizes[0] / sizes[1], 1)}% of its parameters")
    if speeds[0] is not None and speeds[1]:
        batch = text(mapping(costs[0].get("latency_ms")).get("batch"), "1")
        ratios.append(f"{decimal(100 * speeds[0] / speeds[1], 0)}% of its median latency at batch {batch}")
    if ratios:
        parts.append(("with " if parts else "The student has ") + " and ".join(ratios))
    return ", ".join(parts) + "." if parts else ""


def times(share: float | None, verb: Literal["fewer", "smaller", "faster"]) -> str:
    """A share of the other’s amount in words: ``9.8× faster``, or the opposite above 1."""
    if share is None:
        return "not known"
    if 0.95 <= share <= 1.05 or share == 0:
        return "about the same"
    factor = 1 / share if 0 < share < 1 else share
    word = verb if share < 1 else {"fewer": "more", "smaller": "larger", "faster": "slower"}[verb]
    return f"{decimal(factor, 0 if factor >= 10 else 1)}× {word}"


def figures(value: float) -> str:
    """Three significant figures: ``0.0213``, ``9.6``, ``48,100``; with an exponent where that would be a row of zeros."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return _power(value) if places > 9 or abs(rounded) >= 1e9 else f"{rounded:,.{places}f}"


def money(amount: str, currency: str) -> str:
    """``$0.09``, ``0.09 USD``, or the bare number where no currency is named."""
    if not currency:
        return amount
    return f"{amount} {currency}" if any(letter.isalpha() for letter in currency) else f"{currency}{amount}"


def scientific(value: float) -> str:
    """Two figures and a power of ten for what is far below 1: ``3.6×10⁻⁷``."""
    return figures(value) if value == 0 or abs(value) >= 0.001 else _power(value)


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def agreement_text(value: float | None) -> str:
    """A share that is written as 100% only where it is all of it."""
    if value is None:
        return MISSING
    if value >= 1:
        return "100%"
    places = next((places for places in range(1, 6) if round(100 * value, places) < 100), 6)
    return f"{100 * value:.{places}f}%"


def objective_text(term: Record) -> str:
    """A term of the objective: its weight, its name and what else is set."""
    weight = number(term.get("weight"))
    name = text(term.get("term"), "unnamed term")
    others = [
        f"{key} {value if isinstance(value, str | int | float) else json.dumps(value, default=str)}"
        for key, value in term.items()
        if key not in ("term", "weight") and value is not None
    ]
    scheduled = (
        "" if weight is not None or term.get("weight") is None else json.dumps(term["weight"], default=str) + " × "
    )
    return (
        (f"{weight:g} × " if weight is not None else scheduled) + name + (f" ({', '.join(others)})" if others else "")
    )


def sentence(words: str) -> str:
    """A record's reason as a sentence: with a capital in front and a stop at the end."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if not words or words[-1] in ".!?…" else ".")

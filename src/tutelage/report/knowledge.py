"""The section on what the teacher knows, made from ``inspect.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.report.fidelity import is_small, picture
from tutelage.report.knowledge_charts import PullLine, Softness, matrix_chart, pull_chart, softness_chart
from tutelage.report.pages import read_json
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.words import METRICS, MISSING, amount, decimal, plural

INSPECTION = "inspect.json"
#: Pairs of classes that are listed.
PAIRS_SHOWN = 8
#: Classes that are named beside each class.
NEAREST_SHOWN = 4

View = dict[str, Any]


def read_inspection(run_dir: Path) -> Record | None:
    """``inspect.json`` of a folder, or None where the teacher was not inspected.

    Raises:
        DataError: it is damaged, or no record of an inspection.
    """
    source = Path(run_dir) / INSPECTION
    try:
        found = read_json(source, "run `tutelage inspect` again, which writes it anew")
    except FileNotFoundError:
        return None
    return check_inspection(found, str(source))


def check_inspection(inspected: object, where: str) -> Record:
    """The record of an inspection, if a section can be made of it.

    Args:
        inspected: what was read.
        where: names the record in the message, e.g. its path.

    Raises:
        DataError: the temperatures, the classes or the teacher's quality are absent or of another shape.
    """
    record = mapping(inspected)
    classes, rows = sequence(record.get("classes")), records(record.get("temperatures"))
    problems: list[str] = []
    if len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        problems.append("'classes' must be a list of two names or more")
    if not rows or any(number(row.get("temperature")) is None for row in rows):
        problems.append("'temperatures' must be a list of objects with a temperature each")
    if number(mapping(mapping(record.get("quality")).get("validation")).get("accuracy")) is None:
        problems.append("'quality.validation.accuracy' must be a number")
    if problems:
        raise DataError(
            f"{where} is not the record of an inspected teacher: {'; '.join(problems)}. A section made from it would say what nobody "
            "found; run `tutelage inspect` again, which writes the record anew"
        )
    return record


def knowledge_section(inspected: Record) -> View:
    """What the section shows."""
    names = [text(name) for name in sequence(inspected.get("classes"))]
    rows, advised = records(inspected.get("temperatures")), mapping(inspected.get("advice"))
    between = interval(
        [mapping(advised.get("temperature")).get("low"), mapping(advised.get("temperature")).get("high")]
    )
    return {
        "lead": _lead(inspected, advised, between),
        "warnings": [words for warning in records(inspected.get("warnings")) if (words := text(warning.get("text")))],
        "asked": _asked(inspected),
        "quality": _quality(inspected),
        "rivals": _rivals(inspected),
        "softness": _softness(rows, names, between),
        "alike": _alike(mapping(inspected.get("similarity")), names),
        "examples": _examples(mapping(inspected.get("examples"))),
        "pull": _pull(rows, inspected, between),
        "advice": _advice(advised, between),
        "table": [_row(row) for row in rows],
    }


def _lead(inspected: Record, advised: Record, between: tuple[float, float] | None) -> str:
    validation = mapping(mapping(inspected.get("quality")).get("validation"))
    sure = number(validation.get("confidence"))
    right = amount(METRICS["accuracy"], number(validation.get("accuracy")))
    known = f"The teacher is right on {right} of your validation examples" + (
        f", and {amount(METRICS['accuracy'], sure)} sure." if sure is not None else "."
    )
    weights = interval([mapping(advised.get("weight")).get("low"), mapping(advised.get("weight")).get("high")])
    if between is None or weights is None or weights[1] == 0:
        return known
    heat = f"T = {between[0]:g}" + (f" to {between[1]:g}" if between[1] > between[0] else "")
    return f"{known} Begin to search at {heat}, with {weights[0]:g} to {weights[1]:g} of the weight on it."


def _asked(inspected: Record) -> str:
    asked = mapping(inspected.get("asked"))
    train, whole, validation = (number(asked.get(key)) for key in ("train", "of", "validation"))
    members = number(mapping(inspected.get("teacher")).get("members"))
    parts: list[str] = []
    if train is not None:
        some = f" of {whole:,.0f}" if whole is not None and whole > train else ""
        parts.append(
            f"Soft targets are those of {train:,.0f}{some} examples of the transfer set, as a student hears them"
        )
    if validation is not None:
        parts.append(f"quality is judged on {plural(int(validation), 'validation example')}")
    if members is not None:
        parts.append(f"the teacher is an ensemble of {members:.0f}, mixed at each temperature")
    return "; ".join(parts) + (". The test split was not asked." if parts else "")


def _quality(inspected: Record) -> list[View]:
    table: list[View] = []
    for key, name in (("validation", "Validation split"), ("train", "Training examples")):
        found = mapping(mapping(inspected.get("quality")).get(key))
        if not found:
            continue
        gap = number(found.get("over_confidence"))
        table.append(
            {
                "name": name,
                "examples": f"{number(found.get('examples')) or 0:,.0f}",
                "accuracy": amount(METRICS["accuracy"], number(found.get("accuracy"))),
                "confidence": amount(METRICS["accuracy"], number(found.get("confidence"))),
                "gap": MISSING if gap is None else f"{decimal(100 * gap, 1, signed=True)} points",
                "ece": amount(METRICS["ece"], number(found.get("ece"))),
                "nll": amount(METRICS["nll"], number(found.get("nll"))),
            }
        )
    return table


def _rivals(inspected: Record) -> list[str]:
    """What else the validation split was answered by, a sentence each."""
    told: list[str] = []
    for rival in records(inspected.get("rivals")):
        accuracy = number(rival.get("accuracy"))
        if accuracy is not None:
            about = text(rival.get("about"))
            name = text(rival.get("name"), "another model")
            told.append(f"{name} ({about}): {amount(METRICS['accuracy'], accuracy)}" if about else name)
    return told


def _softness(rows: Sequence[Record], names: Sequence[str], between: tuple[float, float] | None) -> View:
    drawn: list[Softness] = []
    for row in rows:
        found = mapping(row.get("entropy"))
        heat, mean, low, high = number(row.get("temperature")), *(number(found.get(k)) for k in ("mean", "p10", "p90"))
        if heat is not None and mean is not None and low is not None and high is not None:
            drawn.append(Softness(heat, mean, low, high))
    if len(drawn) < 2:
        return {"chart": None}
    effective = [(row, number(mapping(row.get("effective_classes")).get("mean"))) for row in rows]
    told = ", ".join(f"{value:.2f} at T = {text(row.get('temperature'))}" for row, value in effective if value)
    chart = softness_chart(
        "chart-softness",
        f"Mean effective number of classes of {len(names)}: {told}.",
        drawn,
        len(names),
        between,
    )
    return {"chart": chart}


def _alike(found: Record, names: Sequence[str]) -> View:
    pairs: list[View] = []
    for pair in sequence(found.get("pairs")):
        place = sequence(pair)
        ends = [int(end) for end in place[:2] if isinstance(end, int) and 0 <= end < len(names)]
        share = number(place[2]) if len(place) == 3 else None
        if len(ends) == 2 and share is not None:
            pairs.append({"a": names[ends[0]], "b": names[ends[1]], "share": amount(METRICS["accuracy"], share)})
    pairs = pairs[:PAIRS_SHOWN]
    order = [int(place) for place in sequence(found.get("order")) if isinstance(place, int)]
    shares = [[number(share) for share in sequence(row)] for row in sequence(found.get("matrix"))]
    whole = sorted(order) == list(range(len(names))) == list(range(len(shares))) and all(
        len(row) == len(names) for row in shares
    )
    best = "; ".join(f"{pair['a']} and {pair['b']} ({pair['share']})" for pair in pairs[:3])
    chart = (
        matrix_chart(
            "chart-alike",
            f"Rows are what the teacher answers, columns the other classes. Most alike: {best or 'no two classes'}.",
            names,
            shares,
            order,
        )
        if whole
        else None
    )
    nearest = [
        {"name": names[own], "next": _nearest(shares[own], names)} for own in (range(len(names)) if whole else [])
    ]
    heat = number(found.get("temperature"))
    return {
        "temperature": "" if heat is None else f"{heat:g}",
        "pairs": pairs,
        "chart": chart,
        "nearest": nearest,
    }


def _nearest(shares: Sequence[float | None], names: Sequence[str]) -> str:
    """The classes that a class is thought most like, in words."""
    known = [(share, name) for share, name in zip(shares, names, strict=True) if share]
    best = sorted(known, key=lambda pair: -pair[0])[:NEAREST_SHOWN]
    return ", ".join(f"{name} {_percent(share)}" for share, name in best) or "never its answer, or one-hot"


def _examples(found: Record) -> View:
    heat = number(found.get("temperature"))
    shown = [_example(example, heat) for example in records(found.get("shown"))]
    drawn = [example for example in shown if example["image"] or example["text"]]
    return {"shown": drawn, "plain": [example["says"] for example in shown if example not in drawn]}


def _example(example: Record, heat: float | None) -> View:
    label, second = text(example.get("label"), "example"), text(example.get("second"), "something else")
    likelihood = number(next(iter(sequence(example.get("probabilities"))[1:2]), None))
    softened = number(next(iter(sequence(example.get("softened"))[1:2]), None))
    image = picture(example.get("image"))
    says = f"this {label} is {_percent(likelihood)} {article(second)} {second}"
    return {
        "says": says,
        "at": "at T = 1"
        + (f", {_percent(softened)} at T = {heat:g}" if softened is not None and heat is not None and heat > 1 else ""),
        "split": text(example.get("split")),
        "image": image,
        "small": image is not None and is_small(image),
        "text": text(example.get("text")) or None,
        "alt": f"{text(example.get('split'))} image labelled {label}; to the teacher {says}".lstrip(),
    }


def article(name: str) -> str:
    """``a`` or ``an``, by the first letter or figure of a class's name."""
    first = name[:1].lower()
    figures = len(name) - len(name.lstrip("0123456789"))
    if figures:
        return "an" if first == "8" or name[:figures] in ("11", "18") else "a"
    return "an" if first in "aeiou" and first else "a"


def _percent(share: float | None) -> str:
    if share is None:
        return "not known"
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{decimal(100 * share, 1)}%"


def _pull(rows: Sequence[Record], inspected: Record, between: tuple[float, float] | None) -> View:
    lines: list[PullLine] = []
    for key, name, slot, shape, dash in (
        ("untrained", "untrained", "scratch", "square", "7 3"),
        ("trained", "trained", "kd", "circle", ""),
    ):
        pairs = [
            (number(row.get("temperature")), number(mapping(mapping(row.get("pull")).get(key)).get("ratio")))
            for row in rows
        ]
        points = [(heat, ratio) for heat, ratio in pairs if heat is not None and ratio is not None and ratio > 0]
        if len(points) > 1:
            lines.append(PullLine(name, slot, shape, dash, points))
    told = "; ".join(
        f"{line.name} student {line.points[0][1]:.2g} at T = {line.points[0][0]:g}, {line.points[-1][1]:.2g} at T = "
        f"{line.points[-1][0]:g}"
        for line in lines
    )
    chart = pull_chart("chart-pull", f"Soft over hard, {told}.", lines, between) if lines else None
    return {"chart": chart, "student": text(inspected.get("student")) or None}


def _advice(advised: Record, between: tuple[float, float] | None) -> View | None:
    weight = mapping(advised.get("weight"))
    weights = interval([weight.get("low"), weight.get("high")])
    if between is None or weights is None:
        return None
    tried = [number(heat) for heat in sequence(mapping(advised.get("temperature")).get("try"))]
    return {
        "temperature": f"{between[0]:g} to {between[1]:g}" if between[1] > between[0] else f"{between[0]:g}",
        "weight": f"{weights[0]:g} to {weights[1]:g}" if weights[1] > weights[0] else f"{weights[0]:g}",
        "try": ", ".join(f"{heat:g}" for heat in tried if heat is not None),
        "reasons": [text(reason) for reason in sequence(advised.get("reasons")) if text(reason)],
        "hedge": text(advised.get("hedge")),
    }


def _row(row: Record) -> View:
    """One temperature's numbers, as they are written in the tables."""
    classes, pull = mapping(row.get("effective_classes")), mapping(row.get("pull"))
    low, high = number(classes.get("p10")), number(classes.get("p90"))
    pulls = [mapping(pull.get(student)) for student in ("untrained", "trained")]
    return {
        "temperature": f"{number(row.get('temperature')) or 0:g}",
        "entropy": _written(number(mapping(row.get("entropy")).get("mean")), 3),
        "classes": _written(number(classes.get("mean")), 2),
        "middle": f"{_written(low, 2)} to {_written(high, 2)}" if low is not None and high is not None else "",
        **{key: amount(METRICS["accuracy"], number(row.get(key))) for key in ("top", "off_label", "beyond_label")},
        "pulls": [_written(number(found.get(key)), 2) for found in pulls for key in ("ratio", "cosine", "even_weight")],
    }


def _written(value: float | None, places: int) -> str:
    return MISSING if value is None else f"{value:,.{places}f}".replace("-", "−")

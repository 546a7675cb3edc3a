"""Names, numbers and sentences of a sentence encoder's study: its metrics, and what came of it."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.report.language_words import KD, TEACHER, UNTOUCHED, arms_of
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.words import (
    Arm,
    Metric,
    amount,
    bytes_text,
    decimal,
    difference,
    evidence,
    find_comparison,
    metric_named,
    reading,
)

Named = Callable[[str], Metric]

_METRICS: dict[str, Metric] = {
    "spearman": Metric("rank correlation", "plain", True),
    "cosine": Metric("cosine with the teacher", "plain", True),
    "cka": Metric("CKA", "plain", True),
    "procrustes": Metric("Procrustes residual", "plain", False),
    "uniformity": Metric("uniformity", "plain", False),
    "mrr": Metric("MRR", "share", True),
}


def judged_recall(result: Record) -> str:
    """The recall that is judged, such as ``recall@10``; empty where no answers are known."""
    return text(mapping(result.get("retrieval")).get("judged"))


def named_in(result: Record) -> Named:
    """Names and units of this study's metrics: ``recall`` is the judged one, ``compared`` what training is held to gain in."""

    def named(key: str) -> Metric:
        key = {"recall": judged_recall(result) or key, "compared": "spearman"}.get(key, key)
        if key in _METRICS:
            return _METRICS[key]
        name, _, k = key.partition("@")
        if k:
            return Metric(f"{'nDCG' if name == 'ndcg' else name}@{k}", "share", True)
        return metric_named(key)

    return named


def part_of(metric: str) -> str:
    """Where a seed's record keeps a metric."""
    return "fidelity" if metric in ("spearman", "cosine", "cka", "procrustes") else "metrics"


def metric_words(metric: Metric) -> str:
    """A metric as a heading."""
    return metric.name if metric.name[1:2].isupper() else f"{metric.name[:1].upper()}{metric.name[1:]}"


def headline(result: Record) -> str:
    """How near the student's similarities are to the teacher's, what is still found with them, and at what speed."""
    return " ".join(part for part in (_kept(result), _found(result), _gained(result)) if part)


def _kept(result: Record) -> str:
    named = named_in(result)
    arm = mapping(mapping(result.get("arms")).get(KD))
    value, ci = number(mapping(arm.get("mean")).get("spearman")), interval(mapping(arm.get("ci95")).get("spearman"))
    if value is None:
        return "How near the student’s similarities are to the teacher’s was not measured."
    metric = named("spearman")
    between = f" (95% interval {amount(metric, ci[0])} to {amount(metric, ci[1])})" if ci else " (no interval)"
    said = f"The distilled student orders pairs of texts as its teacher does with a rank correlation of {amount(metric, value)}{between}"
    before = number(mapping(mapping(mapping(result.get("arms")).get(UNTOUCHED)).get("mean")).get("spearman"))
    return f"{said}, from {amount(metric, before)} before training." if before is not None else f"{said}."


def _found(result: Record) -> str:
    judged, named = judged_recall(result), named_in(result)
    found = find_comparison(result, KD, TEACHER, judged) if judged else None
    value = number(found.get("difference")) if found else None
    if found is None or value is None:
        return ""
    metric = named(judged)
    size = difference(metric, abs(value), signed=False)
    basis = evidence(found, named)
    match reading(found):
        case "worse":
            return f"It loses {size} of the teacher’s {metric.name} ({basis})."
        case "better":
            return f"It finds more than its teacher, {size} of {metric.name} ({basis})."
        case "chance":
            side = "below" if value < 0 else "above"
            return f"Its {metric.name} cannot be told from the teacher’s: {size} {side} it ({basis})."
        case "unproven":
            side = "below" if value < 0 else "above"
            told = f"Its {metric.name} is {size} {side} the teacher’s"
            return f"{told}, and there is not enough evidence to call that more than luck ({basis})."


def _gained(result: Record) -> str:
    both = mapping(result.get("cost"))
    student, teacher = (mapping(both.get(who)) for who in ("student", "teacher"))
    parts: list[str] = []
    speeds = [number(cost.get("texts_per_second")) for cost in (student, teacher)]
    if speeds[0] is not None and speeds[1]:
        parts.append(f"encodes {decimal(speeds[0] / speeds[1], 1)}× as many texts a second")
    sizes = [number(cost.get("bytes")) for cost in (student, teacher)]
    if sizes[0] is not None and sizes[1]:
        parts.append(f"takes {bytes_text(sizes[0])}, {decimal(100 * sizes[0] / sizes[1], 1)}% of the teacher’s weights")
    return f"It {' and '.join(parts)}." if parts else ""


def worst_said(result: Record) -> str:
    """The task that loses most, in a sentence; empty where results are not listed by task."""
    recorded, named = records(result.get("tasks")), named_in(result)
    rows = [row for row in recorded if not is_small(row)]
    if not rows:
        return "Every task has too few test texts to say what it lost." if recorded else ""
    row = rows[0]
    task, drop = text(row.get("task"), "unnamed"), number(row.get("drop"))
    agreement = number(mapping(mapping(row.get("arms")).get(KD)).get("spearman"))
    said: list[str] = []
    if drop is not None:
        size = difference(named("recall"), abs(drop), signed=False)
        said.append(f"{size} of {named('recall').name} {'lost' if drop >= 0 else 'gained'}")
    if agreement is not None:
        said.append(f"a rank correlation of {amount(named('spearman'), agreement)}")
    return f"The worst task is “{task}”: {', '.join(said) or 'nothing was measured of it'}."


def is_small(task: Record) -> bool:
    """Whether a task has too few texts to say anything of it."""
    return task.get("few") is True


def arm_list(result: Record) -> list[tuple[Arm, Record]]:
    """The arms in the page's order."""
    return list(arms_of(result).values())

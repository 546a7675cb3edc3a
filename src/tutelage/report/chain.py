"""The section on a chain of assistants: every link, its gap and its cost, and whether the detour paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.report.charts import Road, Row, interval_chart, key_mark
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.sections import percent_tick
from tutelage.report.words import (
    ARMS,
    METRICS,
    MISSING,
    Arm,
    amount,
    decimal,
    difference,
    duration,
    evidence,
    flops_text,
    plural,
    sentence,
)

View = dict[str, Any]

ARROW = " → "
#: Keeps a duration on one line.
NBSP = "\u00a0"


@dataclass(frozen=True)
class Link:
    """A model on the way: who taught it, what it takes, and its accuracy on either split."""

    name: str
    arm: Arm
    teacher: str
    parameters: float | None
    flops: float | None
    seconds: float | None
    steps: float | None
    test: float | None
    validation: float | None
    ci: tuple[float, float] | None


def chain_section(result: Record) -> View | None:
    """What the section shows, or None where the teacher taught the student itself."""
    chain = mapping(result.get("chain"))
    links = _links(result, chain)
    if not links:
        return None
    direct = _direct(result, links)
    detour = mapping(chain.get("detour"))
    return {
        "lead": lead(chain, detour, result),
        "why": _doubt(detour),
        "note": text(chain.get("note")),
        "chosen": chosen_words(chain),
        **_chart(result, links, direct),
        "table": [_row(link, links) for link in (*links, *([direct] if direct else []))],
        "roads": roads(result, links, direct),
        "candidates": candidates(chain),
    }


def _links(result: Record, chain: Record) -> list[Link]:
    path = [text(name) for name in sequence(chain.get("path"))]
    first, last = (path[0], path[-1]) if path else ("", "")
    found: list[Link] = []
    for record in records(chain.get("links")):
        name = text(record.get("name"), "unnamed")
        key = "teacher" if name == first else "kd" if name == last else "assistant"
        found.append(_link(result, name, key, record))
    return found


def _link(result: Record, name: str, key: str, record: Record) -> Link:
    looks = ARMS.get(key) or Arm(key, name, name, name, name, "member", "cross", "")
    arm = mapping(mapping(result.get("arms")).get(key))
    parameters, flops, seconds, steps = (
        number(record.get(field)) for field in ("parameters", "flops_per_example", "seconds", "steps")
    )
    return Link(
        name=name,
        arm=looks,
        teacher=text(record.get("taught_by")),
        parameters=parameters,
        flops=flops,
        seconds=seconds,
        steps=steps,
        test=number(mapping(record.get("test")).get("accuracy")),
        validation=number(mapping(record.get("validation")).get("accuracy")),
        ci=interval(mapping(arm.get("ci95")).get("accuracy")),
    )


def _direct(result: Record, links: Sequence[Link]) -> Link | None:
    """The student that the teacher taught itself, on the same budget as the one at the end of the chain."""
    record = mapping(mapping(result.get("arms")).get("direct"))
    if not record:
        return None
    end = links[-1]
    return Link(
        name="direct",
        arm=ARMS["direct"],
        teacher=links[0].name,
        parameters=end.parameters,
        flops=end.flops,
        seconds=_mean(record, "seconds"),
        steps=_mean(record, "steps"),
        test=number(mapping(record.get("mean")).get("accuracy")),
        validation=None,
        ci=interval(mapping(record.get("ci95")).get("accuracy")),
    )


def _mean(record: Record, key: str) -> float | None:
    values = [value for seed in records(record.get("seeds")) if (value := number(seed.get(key))) is not None]
    return sum(values) / len(values) if values else None


def lead(chain: Record, detour: Record, result: Record) -> str:
    """Whether the detour paid, in one sentence."""
    between = ARROW.join(text(name) for name in list(sequence(chain.get("path")))[1:-1]) or "the assistants"
    value = number(detour.get("difference"))
    if value is None:
        return f"Whether the detour over {between} paid cannot be told: no difference from the direct road is recorded."
    seeds = len(records(mapping(mapping(result.get("arms")).get("kd")).get("seeds")))
    basis = evidence({**detour, "metric": "accuracy", "seeds": seeds or None})
    verdict = (
        f"Whether the detour over {between} paid cannot be told{' from chance' if interval(detour.get('ci95')) else ''}"
    )
    if isinstance(detour.get("paid"), bool):
        verdict = f"The detour over {between} {'paid' if detour['paid'] else 'did not pay'}"
    spent = _spent(number(detour.get("extra_seconds")), number(detour.get("points_per_minute")))
    return f"{verdict}: {difference(METRICS['accuracy'], value)} of accuracy against the direct road ({basis}){spent}."


def _doubt(detour: Record) -> str:
    """The record's reason where there is no interval to decide by; else the lead has said it all."""
    told = number(detour.get("difference")) is not None and interval(detour.get("ci95")) is not None
    return "" if told else sentence(text(detour.get("why")))


def _spent(extra: float | None, rate: float | None) -> str:
    """What the detour cost, and what a minute of it brought."""
    if extra is None:
        return ""
    if extra <= 0:
        return ", for no more training than that took"
    brought = f": {decimal(rate, 2, signed=True)} points a minute" if rate is not None else ""
    return f", for {duration(extra).replace(' ', NBSP)} more of training{brought}"


def chosen_words(chain: Record) -> str:
    """Which path was taken, and who chose it."""
    path = ARROW.join(text(name) for name in sequence(chain.get("path")))
    # the direct road stands among them to be seen, not to be chosen
    count = sum(len(sequence(found.get("path"))) > 2 for found in records(chain.get("candidates")))
    if chain.get("how") == "best" and count:
        return f"{path}, chosen on the validation split among {plural(count, 'path')} with an assistant."
    return f"{path}, as the config has it." if path else ""


def _chart(result: Record, links: Sequence[Link], direct: Link | None) -> View:
    """The models from the teacher down, with a line from each to the one that it taught."""
    split = "test" if all(link.test is not None for link in links) else "validation"
    shown = [*links, *([direct] if direct and split == "test" else [])]
    by_name = {link.name: place for place, link in enumerate(links)}
    rows, lines, said = list[Row](), list[Road](), list[str]()
    for place, link in enumerate(shown):
        value = link.test if split == "test" else link.validation
        reads = "not measured" if value is None else amount(METRICS["accuracy"], value)
        rows.append(
            Row(
                link.arm.name,
                reads,
                value,
                link.ci if value is not None and split == "test" else None,
                [],
                link.arm.slot,
                link.arm.shape,
            )
        )
        taught = by_name.get(link.teacher)
        said.append(f"{link.arm.name} {reads}" + (f", taught by {shown[taught].name}" if taught is not None else ""))
        if taught is not None and taught != place:
            lines.append(Road(taught, place, link.arm.slot, "5 4" if link is direct else ""))
    control = mapping(mapping(result.get("arms")).get("scratch"))
    level = number(mapping(control.get("mean")).get("accuracy"))
    if split == "test" and level is not None:
        arm = ARMS["scratch"]
        ci = interval(mapping(control.get("ci95")).get("accuracy"))
        rows.append(Row(arm.name, amount(METRICS["accuracy"], level), level, ci, [], arm.slot, arm.shape))
        said.append(f"{arm.name} {amount(METRICS['accuracy'], level)}")
    chart = interval_chart(
        "chart-chain",
        f"Accuracy of every link on the {split} split",
        "; ".join(said) + ".",
        rows,
        percent_tick(rows),
        roads=lines,
    )
    return {"chart": chart, "split": split}


def _row(link: Link, links: Sequence[Link]) -> View:
    """A link's row of the table."""
    taught = next((other for other in links if other.name == link.teacher and other is not link), None)
    gap = None if taught is None or taught.test is None or link.test is None else taught.test - link.test
    metric = METRICS["accuracy"]
    return {
        "name": link.arm.name,
        "key": key_mark(link.arm.slot, link.arm.shape),
        "taught_by": link.teacher or MISSING,
        "test": amount(metric, link.test),
        "ci": f"{amount(metric, link.ci[0])} to {amount(metric, link.ci[1])}"
        if link.ci and link.test is not None
        else "",
        "gap": MISSING if gap is None else difference(metric, gap, signed=False, unit=False),
        "validation": amount(metric, link.validation),
        "parameters": MISSING if link.parameters is None else f"{link.parameters:,.0f}",
        "flops": MISSING if link.flops is None else flops_text(link.flops),
        "seconds": duration(link.seconds),
        "steps": MISSING if link.steps is None else f"{link.steps:,.0f}",
    }


def roads(result: Record, links: Sequence[Link], direct: Link | None) -> list[View]:
    """What a minute of training brings on each road to the student, beyond labels alone."""
    control = mapping(mapping(result.get("arms")).get("scratch"))
    level = number(mapping(control.get("mean")).get("accuracy"))
    if direct is None or level is None:
        return []
    end, extra = links[-1].seconds, number(mapping(mapping(result.get("chain")).get("detour")).get("extra_seconds"))
    spent = None if end is None or extra is None else end + extra
    table: list[View] = []
    for arm, accuracy, seconds in (
        (ARMS["scratch"], level, _mean(control, "seconds")),
        (ARMS["direct"], direct.test, direct.seconds),
        (links[-1].arm, links[-1].test, spent),
    ):
        gain = None if accuracy is None or arm.key == "scratch" else accuracy - level
        rate = None if gain is None or not seconds else 100 * gain / (seconds / 60)
        table.append(
            {
                "name": {"scratch": "Labels alone", "direct": "The direct road"}.get(arm.key, "Through the chain"),
                "key": key_mark(arm.slot, arm.shape),
                "accuracy": amount(METRICS["accuracy"], accuracy),
                "seconds": duration(seconds),
                "gain": MISSING if gain is None else difference(METRICS["accuracy"], gain, unit=False),
                "rate": MISSING if rate is None else decimal(rate, 2, signed=True),
            }
        )
    return table


def candidates(chain: Record) -> list[View]:
    """The paths that were tried, the most accurate on validation first."""

    def accuracy(found: Record) -> float:
        value = number(found.get("validation_accuracy"))
        return -1.0 if value is None else value

    return [
        {
            "path": ARROW.join(text(name) for name in sequence(found.get("path"))) or "unnamed path",
            "chosen": found.get("chosen") is True,
            "accuracy": amount(METRICS["accuracy"], number(found.get("validation_accuracy"))),
            "seconds": duration(number(found.get("seconds"))),
        }
        for found in sorted(records(chain.get("candidates")), key=accuracy, reverse=True)
    ]

"""Names, numbers and sentences of a language study: its arms, its metrics, and what came of it."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.report.looks import own_look
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.words import (
    ARMS,
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

TEACHER, UNTOUCHED, SFT, KD = "teacher", "untouched", "sft", "kd"

_STANDARD: dict[str, Arm] = {
    TEACHER: ARMS[TEACHER],
    UNTOUCHED: Arm(
        UNTOUCHED,
        "Untouched student",
        "the untouched student",
        "the untouched student",
        "untouched",
        "smoothing",
        "triangle",
        "2 3",
    ),
    SFT: Arm(
        SFT,
        "SFT, no teacher",
        "the same student fine-tuned without a teacher",
        "SFT, no teacher",
        "SFT",
        "scratch",
        "square",
        "7 3",
    ),
    KD: ARMS[KD],
}

_METRICS: dict[str, Metric] = {
    "kl": Metric("KL to the teacher", "nats", False, "fine"),
    "nll": Metric("NLL", "nats", False, "fine"),
    "perplexity": Metric("perplexity", "plain", False, "three"),
    "agreement": Metric("top-1 agreement", "share", True),
    "gap": Metric("gap closed", "share", True),
}

#: How words are spelt that arms are often named by.
_SPELT = {"lora": "LoRA", "kl": "KL", "jsd": "JSD", "uld": "ULD", "gkd": "GKD", "sft": "SFT"}

Named = Callable[[str], Metric]


def arms_of(result: Record) -> dict[str, tuple[Arm, Record]]:
    """The arms: the teacher, the untouched student, the fine-tuned and the distilled one, then others in the record's order."""
    found = mapping(result.get("arms"))
    order = [key for key in _STANDARD if key in found]
    others = [key for key in found if key not in _STANDARD]
    arms = {key: _STANDARD[key] for key in order} | {key: _own(key, place) for place, key in enumerate(others)}
    return {key: (arm, mapping(found[key])) for key, arm in arms.items()}


def _own(key: str, place: int) -> Arm:
    plain = " ".join(_SPELT.get(word, word) for word in key.replace("_", " ").split(" "))
    name = plain[:1].upper() + plain[1:]
    return Arm(key, name, f"the arm “{plain}”", f"“{plain}”", plain, *own_look(place))


def within(name: str) -> str:
    """A name within a sentence: with a small letter in front, unless it is spelt with capitals."""
    word = name.split(" ")[0]
    return name if word[1:] != word[1:].lower() else name[:1].lower() + name[1:]


def compared_on(result: Record) -> str:
    """The metric that arms are compared on: the task's own score where there is one, else the KL to the teacher."""
    return "score" if text(result.get("metric")) == "score" else "kl"


def part_of(metric: str) -> str:
    """Where a seed's record keeps a metric."""
    return "fidelity" if metric in ("kl", "agreement") else "metrics"


def metrics_of(result: Record) -> Named:
    """Names and units of this study's metrics: ``score`` is the task's own, ``compared`` the one that arms are compared on."""
    share = result.get("score_is_share") is True
    score = Metric(score_name(result), "share" if share else "plain", True)
    known = {**_METRICS, "score": score}
    known["compared"] = known[compared_on(result)]
    return lambda key: known.get(key) or metric_named(key)


def score_name(result: Record) -> str:
    """What the task's own score is."""
    return text(result.get("score_name")) or "score"


def metric_title(metric: Metric) -> str:
    """A metric as a heading, with its unit."""
    unit = ", nats a token" if metric.unit == "nats" else ""
    return f"{metric.name[:1].upper()}{metric.name[1:]}{unit}"


def nats_a_token(metric: Metric, written: str) -> str:
    """A difference in words: nats are those of a token."""
    return f"{written} a token" if metric.unit == "nats" else written


def headline(result: Record) -> str:
    """How far the distilled student has come towards the teacher, and what the teacher was worth over doing without."""
    return " ".join(part for part in (_way(result), _worth(result)) if part)


def _way(result: Record) -> str:
    """From the untouched student to the teacher."""
    gap, key, named = mapping(result.get("gap")), compared_on(result), metrics_of(result)
    metric = named(key)
    start, own, goal = (number(gap.get(name)) for name in (UNTOUCHED, KD, TEACHER))
    if start is None or own is None or goal is None:
        return ""
    closed, ci = number(gap.get("closed")), interval(gap.get("ci95"))
    if key == "score":
        stand = (
            f"The distilled student reaches {amount(metric, own)} ({metric.name}), from {amount(metric, start)} untouched; the teacher "
            f"has {amount(metric, goal)}"
        )
    else:
        stand = f"The distilled student’s KL to the teacher is {amount(metric, own)} nats a token, from {amount(metric, start)} untouched"
    if closed is None:
        return f"{stand}. How much of the gap is closed cannot be told: the data do not show that there is one."
    between = f" (95% interval {decimal(100 * ci[0], 1)}% to {decimal(100 * ci[1], 1)}%)" if ci else " (no interval)"
    return f"{stand}: {decimal(100 * closed, 1)}% of the gap is closed{between}."


def _worth(result: Record) -> str:
    """The distilled student against the one fine-tuned without a teacher."""
    key, named = compared_on(result), metrics_of(result)
    found = find_comparison(result, KD, SFT, key)
    value = number(found.get("difference")) if found else None
    if found is None or value is None:
        return (
            "What the teacher was worth over plain fine-tuning cannot be told: this run has no arm sft, the same student fine-tuned "
            "without a teacher, to compare with."
        )
    metric = named(key)
    ci = interval(found.get("ci95"))
    # told as a gain, and so is its interval
    turned = found if metric.higher_is_better or ci is None else {**found, "ci95": [0.0 - ci[1], 0.0 - ci[0]]}
    basis = evidence(turned, named)
    gain = value if metric.higher_is_better else 0.0 - value
    size = nats_a_token(metric, difference(metric, abs(gain), signed=False))
    control = "the same student fine-tuned without a teacher"
    what = "" if key == "score" else " in KL to the teacher"
    beside = f"{size}{what} {'better' if gain > 0 else 'worse'} than {control}" if gain else f"level with {control}"
    match reading(found):
        case "better":
            return f"Hearing the teacher was worth {size}{what} over {control} ({basis})."
        case "worse":
            return f"Hearing the teacher did harm: it is {beside} ({basis})."
        case "chance":
            return f"Hearing the teacher gained nothing that can be told from chance: it is {beside} ({basis})."
        case "unproven":
            seeds = number(found.get("seeds"))
            why = "one seed proves nothing" if seeds is not None and seeds < 2 else "there is no interval around it"
            return f"Not enough evidence on what the teacher was worth: it is {beside}, but {why} ({basis})."


def what_it_saves(result: Record) -> str:
    """How much smaller the student is and what its prompt saves; empty where nothing is known."""
    both, context = mapping(result.get("cost")), mapping(result.get("context"))
    parts: list[str] = []
    sizes = [number(mapping(both.get(who)).get("bytes")) for who in ("student", "teacher")]
    if sizes[0] is not None and sizes[1]:
        share = decimal(100 * sizes[0] / sizes[1], 1)
        beside = "as much as the teacher’s" if share == "100.0" else f"{share}% of the teacher’s"
        parts.append(f"the student’s weights take {bytes_text(sizes[0])}, {beside}")
    saved, full = number(context.get("saved")), number(context.get("teacher_prompt_tokens"))
    if saved is not None and full:
        parts.append(f"each request is {tokens_text(saved)} shorter, of {tokens_text(full)}")
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def tokens_text(value: float) -> str:
    """A mean number of tokens: ``34.1 tokens``, ``1 token``."""
    written = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.1f}"
    return f"{written} token" + ("" if written == "1" else "s")


def no_seeds(record: Record) -> bool:
    """Whether an arm was not trained in this study."""
    return all(number(seed.get("steps")) is None for seed in records(record.get("seeds")))

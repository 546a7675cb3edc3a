"""What the soft targets say about a sensible temperature and weight, and what is wrong with a teacher: rules of thumb, in sentences.

No rule here promises a gain. They say where to begin a search and where none is worth its time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.evaluation.knowledge import Renumbering

Json = dict[str, Any]

#: A target is near one-hot where its effective number of classes is below this: the likeliest has about 99%.
NEAR_ONE_HOT = 1.05
#: A target says something where it is above this: the likeliest class has about 98%.
SPEAKS = 1.1
#: The share of ``ln C`` above which targets hardly tell the classes apart.
WASHED_OUT = 0.75
#: How much accuracy a renumbering must gain, on examples it was not fitted to, to be worth a warning.
RENUMBERED = 0.1
#: How far confidence may stand above accuracy.
TOO_SURE = 0.02
#: How far training accuracy may stand above validation accuracy.
BY_HEART = 0.05
#: How far validation accuracy may stand above training accuracy.
DOUBTED = 0.05
#: How much accuracy the teacher may lose under augmentation.
LOST_TO_AUGMENTATION = 0.02
#: The share of unlabelled examples from which the teacher stands in for the labels.
MOSTLY_UNLABELLED = 0.5
#: From which on more temperature changes the soft term's pull by less than this share.
SETTLED = 0.05

HEDGE = (
    "This is a rule of thumb, read off the teacher alone, and no promise: what helps also depends on the student, the budget and the "
    "number of labels. On this project's digits example with 128 labels, T = 1 was as good as any. Try a few, judge them on "
    "validation, and keep the one that the interval supports."
)


@dataclass(frozen=True)
class Findings:
    """What the sentences are made of.

    Args:
        classes: C names.
        table: of `look_at`, over the transfer set.
        validation: of `quality`, on the validation split.
        train: the same on the labelled training examples, or None.
        renumbering: of `best_renumbering`, on the validation split.
        rivals: who else answered the validation split: ``name``, ``kind`` (``student`` or ``baseline``), ``accuracy``,
            ``difference`` (theirs less the teacher's) with its ``ci95``, and ``about``.
        augmentation: ``plain`` and ``augmented`` accuracy, ``agreement`` of the two answers; None where training does not augment.
        unlabelled: the share of the transfer set without a label.
        given: the teacher was not trained by this study.
    """

    classes: Sequence[str]
    table: Sequence[Json]
    validation: Json
    train: Json | None
    renumbering: Renumbering
    rivals: Sequence[Json] = field(default_factory=list[Json])
    augmentation: Json | None = None
    unlabelled: float = 0.0
    given: bool = True


def warnings_of(found: Findings) -> list[Json]:
    """What is wrong, or may be: ``kind`` and ``text``, the most serious first."""
    rules = (_permuted, _worse, _over_confident, _by_heart, _doubtful_labels, _one_hot, _washed_out, _augmented)
    return [{"kind": kind, "text": text} for rule in rules for kind, text in rule(found)]


def _permuted(found: Findings) -> list[tuple[str, str]]:
    best = found.renumbering
    if best.gain < RENUMBERED:
        return []
    moved = [(int(label), own) for own, label in enumerate(best.mapping) if int(label) != own]
    shown = "; ".join(
        f"its {own} ({found.classes[own]}) is your {label} ({found.classes[label]})" for label, own in moved[:8]
    )
    more = f"; and {len(moved) - 8} more" if len(moved) > 8 else ""
    return [
        (
            "permuted_labels",
            f"The teacher's classes look renumbered: it is right on {_percent(best.accuracy)} of the validation examples as it is, and "
            f"on {_percent(best.renumbered)} when each of its classes is read as the label it goes with: {shown}{more}. It would "
            "teach each class under another's number; give teacher and data one order of classes.",
        )
    ]


def _worse(found: Findings) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    own = found.validation["accuracy"]
    for rival in found.rivals:
        if rival["difference"] <= 0.0:
            continue
        low = rival["ci95"][0]
        proven = low is not None and low > 0.0
        how = "is worse than" if proven else "looks no better than"
        doubt = "" if proven else f" On {found.validation['examples']:,} examples the difference may be chance."
        told.append(
            (
                f"worse_than_{rival['kind']}",
                f"The teacher {how} {rival['name']}: {_percent(own)} against {_percent(rival['accuracy'])} on validation "
                f"({rival['about']}).{doubt} A student seldom learns from a teacher more than it could learn without; get a better "
                "teacher first.",
            )
        )
    return told


def _over_confident(found: Findings) -> list[tuple[str, str]]:
    quality = found.validation
    gap, error = quality["over_confidence"], quality["over_confidence_se"]
    if gap < TOO_SURE or error is None or gap < 2.0 * error:
        return []
    return [
        (
            "over_confident",
            f"The teacher is over-confident: on validation it is {_percent(quality['confidence'])} sure and "
            f"{_percent(quality['accuracy'])} right. Its targets at T = 1 are sharper than what it knows; a temperature above 1 "
            "corrects the sharpness, not the mistakes.",
        )
    ]


def _by_heart(found: Findings) -> list[tuple[str, str]]:
    train, validation = found.train, found.validation
    if train is None or train["accuracy"] - validation["accuracy"] < BY_HEART:
        return []
    return [
        (
            "learnt_by_heart",
            f"The teacher has learnt training examples by heart: {_percent(train['accuracy'])} right there (and "
            f"{_percent(train['confidence'])} sure), {_percent(validation['accuracy'])} on validation. On those examples its targets say "
            "little but the label; unlabelled or augmented examples, on which it has to think, are worth more.",
        )
    ]


def _doubtful_labels(found: Findings) -> list[tuple[str, str]]:
    train, validation = found.train, found.validation
    if train is None or validation["accuracy"] - train["accuracy"] < DOUBTED or found.renumbering.gain >= RENUMBERED:
        return []
    return [
        (
            "doubtful_labels",
            f"The teacher contradicts {_percent(1.0 - train['accuracy'])} of the training labels, and only "
            f"{_percent(1.0 - validation['accuracy'])} of those of the validation split: the training labels may be noisy. Where they are "
            "wrong the teacher is the better guide: put a high weight on it.",
        )
    ]


def _one_hot(found: Findings) -> list[tuple[str, str]]:
    first = found.table[0]
    if first["effective_classes"]["p50"] >= NEAR_ONE_HOT:
        return []
    ends = first_speaking(found.table, NEAR_ONE_HOT)
    stops = (
        f"that stops at T = {ends:g}"
        if ends is not None
        else f"and still is at T = {found.table[-1]['temperature']:g}: the logits are very large, check their scale"
    )
    return [
        (
            "near_one_hot",
            f"The targets are near one-hot at T = {first['temperature']:g}: half of them have fewer than {NEAR_ONE_HOT:g} effective "
            f"classes (the mean probability of the likeliest is {_percent(first['top'])}); {stops}. Before that a typical target says "
            "what its label says.",
        )
    ]


def _washed_out(found: Findings) -> list[tuple[str, str]]:
    first, classes = found.table[0], len(found.classes)
    if first["entropy"]["mean"] <= WASHED_OUT * math.log(classes):
        return []
    return [
        (
            "washed_out",
            f"The targets hardly tell the classes apart already at T = {first['temperature']:g}: {first['effective_classes']['mean']:.1f} "
            f"effective classes of {classes} on average, and {_percent(found.validation['confidence'])} sure where it is right in "
            f"{_percent(found.validation['accuracy'])}. A student learns little from them, and less from any higher temperature: train the "
            "teacher longer, check the scale of its logits, or go below T = 1.",
        )
    ]


def _augmented(found: Findings) -> list[tuple[str, str]]:
    seen = found.augmentation
    if seen is None:
        return []
    plain, augmented = seen["plain"]["accuracy"], seen["augmented"]["accuracy"]
    drop = plain - augmented if plain is not None and augmented is not None else 1.0 - seen["agreement"]
    if not (found.given or drop > LOST_TO_AUGMENTATION):
        return []
    because = "the teacher was trained elsewhere" if found.given else "the teacher's answers change with it"
    measured = (
        f"it is right on {_percent(plain)} of plain training examples and on {_percent(augmented)} of augmented ones"
        if plain is not None and augmented is not None
        else f"it answers {_percent(seen['agreement'])} of augmented examples as it answers the plain ones"
    )
    return [
        (
            "augmentation",
            f"Training batches are augmented and {because}: {measured}. Where an augmented example no longer shows its class, the label is "
            "wrong and the teacher, who sees the same view, can say so: put a high weight on the teacher (0.9 or more).",
        )
    ]


def advice(found: Findings) -> Json:
    """Where to begin: a range of temperatures to try and of the soft term's weight, with the reasons.

    Returns:
        ``temperature``: ``low``, ``high`` and those of the table to ``try`` (T = 1 always, since it costs one run);
        ``weight``: ``low`` and ``high``, the share of the soft term; ``reasons``, a sentence each; ``hedge``.
    """
    low, high, reasons = _temperatures(found)
    weights, why = _weights(found)
    inside = [row for row in found.table if low <= row["temperature"] <= high]
    reasons = [*reasons, *why, *_balance(inside)]
    tried = sorted({found.table[0]["temperature"], *(row["temperature"] for row in inside)})
    return {
        "temperature": {"low": low, "high": high, "try": tried},
        "weight": {"low": weights[0], "high": weights[1]},
        "reasons": reasons,
        "hedge": HEDGE,
    }


def first_speaking(table: Sequence[Mapping[str, Any]], limit: float) -> float | None:
    """The lowest temperature at which the median target has so many effective classes, or None."""
    return next((row["temperature"] for row in table if row["effective_classes"]["p50"] >= limit), None)


def settled_from(table: Sequence[Mapping[str, Any]]) -> float | None:
    """From which temperature on the soft term's pull on an untrained student stays as it is at the last; None if it still moves."""
    ratios = [(row["pull"]["untrained"] or {}).get("ratio") for row in table]
    if any(ratio is None for ratio in ratios) or not ratios[-1]:
        return None
    moving = [at for at, ratio in enumerate(ratios) if abs(ratio / ratios[-1] - 1.0) > SETTLED]
    first = moving[-1] + 1 if moving else 0
    return table[first]["temperature"] if first < len(table) - 1 else None


def _temperatures(found: Findings) -> tuple[float, float, list[str]]:
    table = found.table
    most = math.log(len(found.classes))
    reasons: list[str] = []
    speaks = first_speaking(table, SPEAKS)
    low = speaks if speaks is not None else table[-1]["temperature"]
    if found.unlabelled >= MOSTLY_UNLABELLED:
        low = table[0]["temperature"]
        reasons.append(
            f"{_percent(found.unlabelled)} of the transfer set has no label: there even a near one-hot target is news, so the range begins "
            f"at T = {low:g}."
        )
    elif speaks is None:
        reasons.append(
            f"Up to T = {low:g} a typical target has fewer than {SPEAKS:g} effective classes: it is nearly the label."
        )
    elif low > table[0]["temperature"]:
        reasons.append(
            f"Below T = {low:g} a typical target has fewer than {SPEAKS:g} effective classes, so it says little more than its label."
        )
    else:
        reasons.append(f"At T = {low:g} already a typical target speaks of other classes than its label.")
    clear = [row["temperature"] for row in table if row["entropy"]["mean"] <= WASHED_OUT * most]
    high = max([low, *clear])
    above = next((row for row in table if row["temperature"] > high), None)
    if above is not None:
        reasons.append(
            f"At T = {above['temperature']:g} the targets have {above['effective_classes']['mean']:.1f} effective classes of "
            f"{len(found.classes)} on average: most of what tells the classes apart is washed out."
        )
    settled = settled_from(table)
    if settled is not None and settled <= high:
        reasons.append(
            f"From T = {settled:g} on, more temperature hardly changes how the soft term pulls (with T² it has become a regression of "
            "the logits), so that higher ones need not be searched finely."
        )
    reasons.append(
        "A student far smaller than its teacher tends to do better at the lower end (Hinton et al. 2015, section 3)."
    )
    return low, high, reasons


def _weights(found: Findings) -> tuple[tuple[float, float], list[str]]:
    kinds = {warning["kind"] for warning in warnings_of(found)}
    if "permuted_labels" in kinds:
        return (0.0, 0.0), ["Nothing should be learnt from this teacher before its classes are put in order."]
    proven = [rival for rival in found.rivals if rival["ci95"][0] is not None and rival["ci95"][0] > 0.0]
    if proven:
        return (0.0, 0.3), [f"{_capital(proven[0]['name'])} is better than the teacher: listen to the labels first."]
    if "augmentation" in kinds:
        return (0.9, 1.0), [
            "Under augmentation the teacher sees what is left of an example, the label does not: trust the teacher more."
        ]
    if "doubtful_labels" in kinds:
        return (0.8, 1.0), [
            "The teacher contradicts more training labels than its mistakes explain: trust it more than them."
        ]
    if found.unlabelled >= MOSTLY_UNLABELLED:
        return (0.8, 1.0), [
            "Most examples have no label to weigh against the teacher, so most of the weight is the teacher's."
        ]
    if "near_one_hot" in kinds and found.train is not None and found.train["accuracy"] >= 0.99:
        return (0.5, 0.9), [
            "On these examples teacher and label say nearly the same at T = 1, so the weight matters little there."
        ]
    return (0.5, 0.9), ["Half of the weight or more on the teacher is where most published recipes begin."]


def _balance(rows: Sequence[Json]) -> list[str]:
    pulls = [(row["temperature"], row["pull"]["untrained"]) for row in rows]
    even = [
        (temperature, pull["even_weight"]) for temperature, pull in pulls if pull and pull["even_weight"] is not None
    ]
    if not even:
        return []
    first, last = even[0], even[-1]
    said = f"{first[1]:.2f} at T = {first[0]:g}" + (f" and {last[1]:.2f} at T = {last[0]:g}" if last != first else "")
    return [
        f"At a student that knows nothing, soft and hard term pull equally hard where the soft one's weight is {said}."
    ]


def _percent(share: float) -> str:
    places = 1 if share in (0.0, 1.0) or 0.001 <= share <= 0.999 else 2
    return f"{100 * share:.{places}f}%"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]

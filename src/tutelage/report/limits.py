"""What was not shown of an artefact, as plainly as what was."""

from __future__ import annotations

from tutelage.report.artefacts import artefact_named, single
from tutelage.report.gate_words import gate_name, gate_needs
from tutelage.report.record import Record, mapping, number, records, text
from tutelage.report.words import ALPHA, plural


def limits(result: Record, shipped: Record, name: str) -> list[str]:
    """Sentences on what the evidence does not reach, from what the records hold and lack."""
    artefact = artefact_named(shipped, name)
    found = [*_of_the_data(result), *_of_the_study(result), *_of_the_check(artefact)]
    one = single(shipped)
    if one is None:
        return [*found, "Its latency, throughput and memory were not measured."]
    cpu = text(mapping(mapping(shipped.get("measured")).get("cpu")).get("name"), "one machine")
    return [
        *found,
        f"Latency and memory are those of {cpu}, and others elsewhere; the ratio to the teacher travels better.",
    ]


def _of_the_data(result: Record) -> list[str]:
    examples = number(mapping(result.get("splits")).get("test"))
    count = plural(int(examples), "test example") if examples is not None else "the test split"
    return [
        f"All of it is shown on {count} drawn like the training data: nothing is known of inputs of another kind, of drift, or of "
        "inputs made to deceive it."
    ]


def _of_the_study(result: Record) -> list[str]:
    arms = mapping(result.get("arms"))
    seeds = len(records(mapping(arms.get("kd")).get("seeds")))
    said: list[str] = []
    if "scratch" not in arms:
        said.append("No control was trained without the teacher, so what distillation was worth is not known.")
    if seeds == 1:
        said.append("One seed was trained, which cannot tell luck from merit.")
    elif seeds > 1:
        said.append(
            f"The study judges a recipe over {plural(seeds, 'seed')}; the artefact is one of its students, and with p < {ALPHA} one "
            "comparison in twenty is taken for more than chance where there is nothing."
        )
    return said


def _of_the_check(artefact: Record) -> list[str]:
    check = mapping(artefact.get("check"))
    if not check:
        return [
            "The artefact was not judged on the test split: what is said of it is from validation, on which training was selected."
        ]
    said: list[str] = []
    for gate in records(check.get("gates")):
        if gate.get("passed") is None:
            said.append(f"Undecided: {gate_name(gate)}. {gate_needs(gate)}".rstrip())
    if not [column for column in mapping(check.get("slices")) if column != "class"]:
        said.append("No slices by metadata were looked at: a group of inputs that it fails would not be seen here.")
    if not mapping(mapping(check.get("flips")).get("baseline")):
        said.append(
            "It was not compared with an artefact shipped before: which answers change for its users is not known."
        )
    return said

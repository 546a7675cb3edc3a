"""From an embedding study's evidence to ``ship``, ``hold`` or ``reject``, by the rules of :mod:`tutelage.studies.judging`.

A gate on similarities or on recall asks its interval: it passes or fails where the whole of it lies on one side of the limit, and is
undecided in between, or with one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tutelage.studies.embedding.arms import UNTOUCHED
from tutelage.studies.embedding.gates import EmbeddingGates
from tutelage.studies.embedding.tasks import LEAST_A_TASK
from tutelage.studies.gates import JUDGED
from tutelage.studies.judging import NO_INTERVAL, ONE_SEED, decide, gate_of, insufficient, undecided

Json = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What an embedding study's verdict rests on.

    Args:
        arms: the ``arms`` of ``result.json``.
        comparisons: its ``comparisons``.
        cost: its ``cost``.
        tasks: its ``tasks``, worst first, those too small to say anything of last.
        recall: the name of the recall that is judged; None where no answers are known.
        values: by arm ``[S, G]`` of that recall: what an undecided gate is asked of for how much more would decide.
        untouched: whether the student was measured before its training.
    """

    arms: Mapping[str, Any]
    comparisons: Sequence[Mapping[str, Any]]
    cost: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]
    recall: str | None
    values: Mapping[str, NDArray[Any]]
    untouched: bool

    def comparison(self, other: str, metric: str) -> Mapping[str, Any] | None:
        """The judged arm against another; None where there is none."""
        wanted = (JUDGED, other, metric)
        return next((row for row in self.comparisons if (row["a"], row["b"], row["metric"]) == wanted), None)


def judge_embedding(gates: EmbeddingGates, evidence: Evidence) -> Json:
    """The verdict as ``result.json`` has it."""
    judged = [
        _spearman(gates.spearman, evidence),
        _gain(gates.gain_over_untouched, evidence),
        _recall(gates.recall_drop, evidence),
        _worst_task(gates.worst_task_drop, evidence),
        _size(gates.size_ratio, evidence.cost),
        _throughput(gates.throughput_ratio, evidence.cost),
    ]
    asked = [gate for gate in judged if gate is not None]
    return {"decision": decide(asked), "gates": asked}


def _spearman(limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None:
        return None
    arm = evidence.arms[JUDGED]
    value, interval = arm["mean"]["spearman"], arm["ci95"]["spearman"]
    if len(arm["seeds"]) < 2:
        return gate_of("spearman", value, limit, None, ONE_SEED)
    if None in interval:
        return gate_of("spearman", value, limit, None, NO_INTERVAL)
    low, high = interval
    said = (
        f"The rank correlation of the student's similarities with the teacher's is {value:z.3f} (95% interval: {low:z.3f} to {high:z.3f})"
    ).replace("-", "−")
    asked = f"the {limit:g} asked for"
    if low >= limit:
        return gate_of("spearman", value, limit, True, f"{said}; all of the interval is at least {asked}.")
    if high < limit:
        return gate_of("spearman", value, limit, False, f"{said}; all of the interval is below {asked}.")
    why = f"{said}; {asked} lies inside the interval: more seeds or test texts would decide."
    return gate_of("spearman", value, limit, None, why)


def _gain(limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None or not evidence.untouched:
        return None
    name, row = "gain_over_untouched", evidence.comparison(UNTOUCHED, "spearman")
    gain = row["difference"] if row is not None else None
    why = insufficient(row, UNTOUCHED, one_model=False)
    if why is not None or row is None or gain is None:
        return gate_of(name, gain, limit, None, why or "")
    low, high = row["ci95"]
    said = (
        f"Training changed that correlation by {gain:+z.3f} (95% interval: {low:+z.3f} to {high:+z.3f}) against the untouched student"
    ).replace("-", "−")
    asked = f"a gain of more than {limit:g}".replace("-", "−") if limit else "a gain"
    if low > limit:
        return gate_of(name, gain, limit, True, f"{said}; all of the interval is {asked}.")
    if high <= limit:
        return gate_of(name, gain, limit, False, f"{said}; none of the interval is {asked}.")
    chance = "that cannot be told from chance" if not limit else "more seeds or test texts would decide"
    return gate_of(name, gain, limit, None, f"{said}; only part of the interval is {asked}: {chance}.")


def _recall(limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None or evidence.recall is None:
        return None
    name, row = "recall_drop", evidence.comparison("teacher", evidence.recall)
    drop = 0.0 - row["difference"] if row is not None else None
    why = insufficient(row, "teacher", one_model=False)
    if why is not None or row is None or drop is None:
        return gate_of(name, drop, limit, None, why or "")
    low, high = row["ci95"]
    where = "below" if drop > 0 else "above"
    said = (
        f"The student's {evidence.recall} is {abs(100 * drop):.3g} points {where} the teacher's (95% interval of the difference: "
        f"{100 * low:+z.3g} to {100 * high:+z.3g})"
    ).replace("-", "−")
    allowed = f"the {100 * limit:.3g} points allowed"
    if -low <= limit:
        return gate_of(name, drop, limit, True, f"{said}; all of the interval is within {allowed}.")
    if -high > limit:
        return gate_of(name, drop, limit, False, f"{said}; all of the interval is beyond {allowed}.")
    gate = gate_of(
        name, drop, limit, None, f"{said}; {allowed} lie inside the interval: more seeds or test texts would decide."
    )
    return undecided(gate, evidence.values.get(JUDGED), evidence.values.get("teacher"), -limit)


def _worst_task(limit: float | None, evidence: Evidence) -> Json | None:
    """The task that loses most of the teacher's recall: none may lose more than the limit, and one too small to say is no pass."""
    if limit is None:
        return None
    name, known = "worst_task_drop", [row for row in evidence.tasks if row["drop"] is not None and not row["few"]]
    few = sum(row["few"] for row in evidence.tasks)
    least = f"fewer than {LEAST_A_TASK} texts with answers, or answers of one group alone"
    if not known:
        why = "No task has texts with answers: name the columns data.tasks and data.groups."
        if few:
            why = f"Every task has {least}: too few to say what was lost; give more test texts, or fewer tasks."
        return gate_of(name, None, limit, None, why)
    aside = f" Left out: {'a task' if few == 1 else f'{few:,} tasks'} with {least}." if few else ""
    if len(evidence.arms[JUDGED]["seeds"]) < 2:
        return gate_of(name, known[0]["drop"], limit, None, ONE_SEED)
    most = known[0]
    said = (
        f"The task {most['task']!r} loses most to the teacher, {100 * most['drop']:.3g} points of {evidence.recall} on "
        f"{most['queries']:,} texts"
    )
    allowed = f"the {100 * limit:.3g} points allowed"
    beyond = [row for row in known if None not in row["ci"] and row["ci"][0] > limit]
    if beyond:
        surest = max(beyond, key=lambda row: row["ci"][0])
        low, high = surest["ci"]
        why = f"{said}; {surest['task']!r} loses {100 * low:.3g} to {100 * high:.3g} points (simultaneous 95% interval), beyond {allowed}."
        return gate_of(name, most["drop"], limit, False, why + aside)
    unsure = [row for row in known if None in row["ci"] or row["ci"][1] > limit]
    if not unsure and (lost := _lost_of_few(limit, evidence)):
        return gate_of(name, most["drop"], limit, None, f"{said}.{aside} {lost}")
    if not unsure:
        why = f"{said}; every task's interval (95%, simultaneous) is within {allowed}."
        return gate_of(name, most["drop"], limit, True, why + aside)
    why = (
        f"{said}; for {len(unsure):,} of {len(known):,} tasks the interval (95%, simultaneous) reaches beyond {allowed}, or there is none: "
        "more test texts of them would decide."
    )
    return gate_of(name, most["drop"], limit, None, why + aside)


def _lost_of_few(limit: float, evidence: Evidence) -> str | None:
    """In words the left-out tasks whose drop exceeds the limit, by chance or not; None where there is none."""
    lost = [row for row in evidence.tasks if row["few"] and row["drop"] is not None and row["drop"] > limit]
    if not lost:
        return None
    most = max(lost, key=lambda row: row["drop"])
    many = "One of them loses" if len(lost) == 1 else f"{len(lost):,} of them lose"
    texts = "one text" if most["queries"] == 1 else f"{most['queries']:,} texts"
    return (
        f"{many} more than the {100 * limit:.3g} points allowed, {most['task']!r} {100 * most['drop']:.3g} points on {texts}: too few to "
        "tell from chance, too much to pass; more test texts of such tasks would decide."
    )


def _size(limit: float | None, cost: Mapping[str, Any]) -> Json | None:
    if limit is None:
        return None
    ratio = cost["student"]["bytes"] / cost["teacher"]["bytes"]
    why = f"The student's weights take {100 * ratio:.3g}% of the teacher's; at most {100 * limit:.3g}% is allowed."
    return gate_of("size_ratio", ratio, limit, ratio <= limit, why)


def _throughput(limit: float | None, cost: Mapping[str, Any]) -> Json | None:
    if limit is None:
        return None
    both = [cost[who]["texts_per_second"] for who in ("student", "teacher")]
    ratio = both[0] / both[1]
    why = (
        f"The student encodes {both[0]:,.0f} texts a second and the teacher {both[1]:,.0f}, {ratio:.3g} times as many, in batches of "
        f"{cost['student']['batch']:,} from text to embedding; at least {limit:g} times as many are asked for."
    )
    return gate_of("throughput_ratio", ratio, limit, ratio >= limit, why)

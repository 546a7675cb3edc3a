"""Four ways to a teacher's answers, what each would cost a whole study, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.studies.planning.asks import Asks

Json = dict[str, Any]
Name = Literal["live", "memory", "dense", "sparse"]

#: A labelling pass of so many seconds is worth a store that outlives the process: a run that is cut off, a sweep's workers and
#: the next study would each pay it again.
LONG = 600.0
#: Ways whose times differ by less than this share of the best one, or by so many seconds, are alike.
ALIKE, MOMENT = 0.1, 30.0
#: Shares of what is free that a way may take: of memory, of the disk, and of the disk while a smaller form would do.
OF_MEMORY, OF_DISK, OF_DISK_EASILY = 0.5, 0.9, 0.1


@dataclass(frozen=True)
class Spread:
    """Seconds: the median of what was measured, the lowest and the highest, and how many measurements there were."""

    median: float
    low: float
    high: float
    count: int

    def times(self, factor: float) -> Spread:
        """So many of them."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)

    def plus(self, other: Spread) -> Spread:
        """Both, one after the other."""
        return Spread(
            self.median + other.median,
            self.low + other.low,
            self.high + other.high,
            min(self.count, other.count) if self.count and other.count else max(self.count, other.count),
        )

    def to_json(self) -> Json:
        """The fields."""
        return {"median": self.median, "low": self.low, "high": self.high, "count": self.count}


NOTHING = Spread(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class FormCost:
    """What one stored form costs.

    Args:
        section: the keys of a config's ``labels`` that ask for it.
        once: seconds of a store, however large: its certificate, and the spot check when it is opened.
        write: seconds an example, compression included.
        read: seconds an example, its row group read from the disk (or what the system keeps of it).
        warm: seconds an example, out of a store's cache.
        bytes: an example on disk.
        row_bytes: a row on disk, without features.
        cached: bytes an example in a store's cache.
    """

    section: Mapping[str, Any]
    once: Spread
    write: Spread
    read: Spread
    warm: Spread
    bytes: float
    row_bytes: float
    cached: float

    def to_json(self) -> Json:
        """The fields."""
        seconds = {
            "once": self.once.to_json(),
            "write": self.write.to_json(),
            "read": self.read.to_json(),
            "warm": self.warm.to_json(),
        }
        return {"labels": dict(self.section), **seconds, "bytes": self.bytes, "row_bytes": self.row_bytes}


@dataclass(frozen=True)
class Costs:
    """What was measured on this machine.

    Args:
        ask: seconds an example, the teacher asked in a student's batches.
        label: seconds an example, the teacher asked about everything in a row, batches made included.
        recall: seconds an example, from answers in memory.
        answer_bytes: an example's answer in memory, as it is kept there.
        teacher_bytes: of the teacher's weights.
        cache_bytes: of answers that may be in memory, kept there or read from a store.
        free_memory, free_disk: bytes, now.
        dense: the stored dense form.
        sparse: the stored sparse form, where the objective can learn from one.
    """

    ask: Spread
    label: Spread
    recall: Spread
    answer_bytes: float
    teacher_bytes: int
    cache_bytes: int
    free_memory: int
    free_disk: int
    dense: FormCost | None
    sparse: FormCost | None


@dataclass(frozen=True)
class Limits:
    """What stands in the way, whatever it costs.

    Args:
        varies: whether the teacher's view is another one in each epoch.
        views: how many views an example has, where that is fixed.
        memory: why answers cannot be kept in memory, or None.
        dense, sparse: why the form cannot be stored or learnt from, or None.
    """

    varies: bool = False
    views: int | None = None
    memory: str | None = None
    dense: str | None = None
    sparse: str | None = None


@dataclass(frozen=True)
class Way:
    """One way to the teacher's answers.

    Args:
        name: ``live``, ``memory``, ``dense`` or ``sparse``.
        seconds: of teaching and labelling in the whole study.
        labelling: of these, before the first student can learn.
        again: of the same study run again, with what is kept.
        disk, memory: bytes; memory is the teacher's weights and the answers.
        cannot: why it is out of the question; empty where it is not.
        limits: what it cannot do, where it can be taken.
        labels: the config's section, None where none is needed.
    """

    name: Name
    seconds: Spread = NOTHING
    labelling: Spread = NOTHING
    again: Spread = NOTHING
    disk: float = 0.0
    memory: float = 0.0
    cannot: Sequence[str] = field(default_factory=list[str])
    limits: Sequence[str] = field(default_factory=list[str])
    labels: Mapping[str, Any] | None = None

    def to_json(self) -> Json:
        """The fields."""
        return {
            "seconds": self.seconds.to_json(),
            "labelling": self.labelling.to_json(),
            "again": self.again.to_json(),
            "disk": round(self.disk),
            "memory": round(self.memory),
            "cannot": list(self.cannot),
            "limits": list(self.limits),
            "labels": dict(self.labels) if self.labels is not None else None,
        }


def ways_of(asks: Asks, costs: Costs, limits: Limits) -> list[Way]:
    """The four ways, the simplest first."""
    return [
        _live(asks, costs),
        _memory(asks, costs, limits),
        _stored("dense", asks, costs, limits, costs.dense, limits.dense),
        _stored("sparse", asks, costs, limits, costs.sparse, limits.sparse),
    ]


def _live(asks: Asks, costs: Costs) -> Way:
    seconds = costs.ask.times(asks.live)
    limits = ["nothing is kept: a run that is cut off asks on, and the next one asks anew"]
    return Way("live", seconds, again=seconds, memory=costs.teacher_bytes, limits=limits)


def _memory(asks: Asks, costs: Costs, limits: Limits) -> Way:
    if limits.varies:
        why = "the teacher sees another view of each example in every epoch: an answer from one would be given for another"
        return Way("memory", cannot=[why])
    labelling = costs.label.times(asks.examples * asks.passes)
    seconds = labelling.plus(costs.recall.times(asks.live))
    answers = costs.answer_bytes * asks.examples
    cannot = [limits.memory] if limits.memory is not None else []
    if answers > OF_MEMORY * costs.free_memory:
        cannot.append(f"the answers take {size(answers)}, and {size(costs.free_memory)} of memory are free")
    elif answers > costs.cache_bytes:
        cannot.append(
            f"the answers take {size(answers)}, and a run keeps up to {size(costs.cache_bytes)} in memory: what is more it puts on the "
            "disk by itself, whole and in float32"
        )
    lasts = ["the answers go with the process: a run that is cut off, and the next one, ask for them all again"]
    return Way("memory", seconds, labelling, seconds, memory=costs.teacher_bytes + answers, cannot=cannot, limits=lasts)


def _stored(
    name: Literal["dense", "sparse"], asks: Asks, costs: Costs, limits: Limits, form: FormCost | None, why: str | None
) -> Way:
    if limits.varies and limits.views is None:
        told = "the teacher sees another view of each example in every epoch: with labels.views: V there are V of them, and all are stored"
        return Way(name, cannot=[told])
    if form is None or why is not None:
        return Way(name, cannot=[why if why is not None else "it was not measured"])
    views = (limits.views or 1) if limits.varies else 1
    entries = asks.examples * views
    labelling = costs.label.plus(form.write).times(entries * asks.stores).plus(form.once.times(asks.stores))
    # examples come in random order: so much of the store as its cache holds, so often is an example found there
    found = min(1.0, costs.cache_bytes / max(form.cached * entries, 1.0))
    reading = form.warm.times(asks.live * found).plus(form.read.times(asks.live * (1.0 - found)))
    disk = form.bytes * entries * asks.stores
    cannot = (
        [f"the store takes {size(disk)}, and {size(costs.free_disk)} of disk are free"]
        if disk > OF_DISK * costs.free_disk
        else []
    )
    section = {**form.section, **({"views": limits.views} if limits.varies else {})}
    memory = costs.teacher_bytes + min(form.cached * entries, costs.cache_bytes)
    return Way(name, labelling.plus(reading), labelling, reading, disk, memory, cannot, [_serves(form)], section)


def _serves(form: FormCost) -> str:
    """What can be learnt from a stored form."""
    kind, row = form.section["form"], f"{form.row_bytes:,.0f} bytes a row"
    if kind == "dense":
        return f"{row}, for every divergence at every temperature, rounded to {form.section.get('dtype', 'float16')}"
    at = f"at T = {form.section['temperature']:g} alone"
    if kind == "sampled":
        return f"{row} of {form.section['draws']:,} draws, for forward KL {at}, without bias; other terms cannot learn from them"
    return f"{row} of {form.section['k']:,} classes, {at}: the classes that are not kept count as one, a lower bound of the divergence"


def pick(ways: Sequence[Way], costs: Costs) -> tuple[Way, str]:
    """The way to take, and why.

    The fastest, unless a way that is nearly as fast is better for another reason: answers that took long are kept where they
    outlive the process; otherwise what needs no store is simpler; and what is exact goes before what is compressed, as long as it
    takes little of the disk.
    """
    able: dict[Name, Way] = {way.name: way for way in ways if not way.cannot}
    best = min(able.values(), key=lambda way: way.seconds.median)
    most = best.seconds.median + max(ALIKE * best.seconds.median, MOMENT)
    near = {name: way for name, way in able.items() if way.seconds.median <= most}
    costly = "dense" in near and near["dense"].disk > OF_DISK_EASILY * costs.free_disk
    stored: list[Name] = ["sparse", "dense"] if costly else ["dense", "sparse"]
    long = max((way.labelling.median for way in near.values()), default=0.0) >= LONG
    order: list[Name] = [*stored, "memory", "live"] if long else ["memory", "live", *stored]
    chosen = next(near[name] for name in order if name in near)
    return chosen, _why(chosen, best, able, long=long)


def _why(chosen: Way, best: Way, able: Mapping[Name, Way], *, long: bool) -> str:
    """In a sentence."""
    others = [way for way in able.values() if way is not chosen]
    if not others:
        return "no other way is open to this study"
    slowest = max(others, key=lambda way: way.seconds.median)
    gained = slowest.seconds.median / max(chosen.seconds.median, 1e-9)
    if chosen.name in ("dense", "sparse") and long:
        said = (
            f"labelling takes {lasting(chosen.labelling.median)}, which a run that is cut off, and the next study, would pay again "
            "without a store"
        )
    elif chosen is best and gained >= 1.0 + ALIKE:
        times = f"{gained:,.0f}" if gained >= 10 else f"{gained:.1f}"
        said = f"it is the fastest, {times} times faster than {NAMES[slowest.name]}"
    else:
        said = "no way is much faster, and it is the simplest of those"
    whole = able.get("dense")
    if chosen.name == "sparse" and whole is not None:
        said += f"; {NAMES['dense']} would take {size(whole.disk)} of the disk and {lasting(whole.seconds.median)}"
    return said


#: What each way is called in a sentence.
NAMES: Mapping[Name, str] = {
    "live": "asking at every step",
    "memory": "keeping the answers in memory",
    "dense": "storing them whole",
    "sparse": "storing a few classes of each",
}


def size(count: float) -> str:
    """Bytes for people: ``4.2 MB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:,.0f} B"


def lasting(seconds: float) -> str:
    """A time for people, in one unit: ``0.4 s``, ``35 s``, ``12 min``, ``3.1 h``, ``4.2 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    for unit, scale, most in (("min", 60.0, 5400.0), ("h", 3600.0, 172800.0)):
        if seconds < most:
            return f"{seconds / scale:.0f} {unit}" if seconds >= 10 * scale else f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 86400:,.1f} days"

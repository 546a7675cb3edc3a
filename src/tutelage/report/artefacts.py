"""Teacher, trained student and artefacts side by side: what the two records say of each of them as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.errors import ConfigError
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.words import ARMS, plural

FORMATS = {"onnx": "ONNX", "executorch": "ExecuTorch", "safetensors": "safetensors"}
_SHAPES = {"onnx": "square", "executorch": "triangle", "safetensors": "cross"}

#: What ``measured`` calls the two models that are no artefacts.
TEACHER, STUDENT = "teacher", "student"


@dataclass(frozen=True)
class Conditions:
    """Under what a latency or a throughput was measured."""

    batch: float
    threads: float
    length: float | None

    def __str__(self) -> str:
        parts = [f"batch {self.batch:,.0f}", plural(int(self.threads), "thread")]
        return ", ".join(parts + ([] if self.length is None else [f"length {self.length:,.0f}"]))


@dataclass(frozen=True)
class Standing:
    """One model of the comparison; None stands for what was not measured.

    Args:
        key: ``"teacher"``, ``"student"`` or the artefact's name: what ``measured`` calls it.
        name: for people.
        about: its format, precision and seed.
        slot: the colour slot, ``s-<slot>`` in the CSS.
        shape: of its marker.
        split: ``"test"`` or ``"validation"``: where its metrics come from.
        metrics: accuracy, NLL, ECE … on that split.
        ci: the 95% interval of the accuracy.
        max_abs: largest absolute difference of a logit from the trained student's.
        agreement: share of examples with the trained student's answer.
        size: bytes on disk.
        latency: median, in ms a call, under ``single``.
        spread: lowest and highest median over rounds, in ms.
        throughput: examples a second, under ``bulk``.
        memory: peak, in bytes; ``runtime``: how much of it is there without the model.
        price: of a million inferences.
        flops: floating-point operations an example; None for int8, whose arithmetic is in integers.
    """

    key: str
    name: str
    about: str
    slot: str
    shape: str
    split: str
    metrics: Record
    ci: tuple[float, float] | None
    max_abs: float | None
    agreement: float | None
    size: float | None
    latency: float | None
    spread: tuple[float, float] | None
    throughput: float | None
    memory: float | None
    runtime: float | None
    price: float | None
    flops: float | None

    @property
    def accuracy(self) -> float | None:
        """The accuracy on its split."""
        return number(self.metrics.get("accuracy"))


def artefacts_of(shipped: Record) -> list[tuple[str, Record]]:
    """The artefacts by name, in the record's order."""
    return [(name, mapping(found)) for name, found in mapping(shipped.get("artefacts")).items()]


def artefact_named(shipped: Record, name: str) -> Record:
    """One artefact.

    Raises:
        ConfigError: the record has none of that name.
    """
    found = mapping(shipped.get("artefacts"))
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            f"there is no artefact {name!r} in shipped.json (there: {known}): what would be written about it would be about "
            "nothing; name one of those, or make it with `tutelage export`"
        )
    return mapping(found[name])


def described(artefact: Record) -> str:
    """``ONNX int8, seed 0``."""
    kind = text(artefact.get("format"), "unknown format")
    seed = text(artefact.get("seed"))
    return f"{FORMATS.get(kind, kind)} {text(artefact.get('precision'))}".rstrip() + (f", seed {seed}" if seed else "")


def single(shipped: Record) -> Conditions | None:
    """One example at a time: the smallest batch, the fewest threads, the greatest length; None where nothing was measured."""
    rows = _timed(shipped)
    if not rows:
        return None
    batch, threads = min((row.batch, row.threads) for row in rows)
    lengths = [row.length for row in rows if (row.batch, row.threads) == (batch, threads) and row.length is not None]
    return Conditions(batch, threads, max(lengths, default=None))


def bulk(shipped: Record) -> Conditions | None:
    """As many as were tried at once: the largest batch, the most threads, the greatest length."""
    rows = _timed(shipped)
    if not rows:
        return None
    batch, threads = max((row.batch, row.threads) for row in rows)
    lengths = [row.length for row in rows if (row.batch, row.threads) == (batch, threads) and row.length is not None]
    return Conditions(batch, threads, max(lengths, default=None))


def measured_row(shipped: Record, model: str, under: Conditions | None) -> Record:
    """What was measured of a model under those conditions; empty where nothing was."""
    for row in records(mapping(shipped.get("measured")).get("rows")):
        if row.get("model") == model and _conditions(row) == under:
            return row
    return {}


def standings(result: Record, shipped: Record, only: str | None = None) -> list[Standing]:
    """The teacher, the trained student of each exported seed, and the artefacts.

    The trained student of a checked artefact is described on the test split, that of an unchecked one on validation, the
    teacher always on the test split.

    Args:
        result: the content of ``result.json``.
        shipped: the content of ``shipped.json``.
        only: leaves out every artefact but this.
    """
    artefacts = [(name, found) for name, found in artefacts_of(shipped) if only in (None, name)]
    found: list[Standing] = []
    teacher = mapping(mapping(result.get("arms")).get("teacher"))
    if teacher:
        arm = ARMS["teacher"]
        ci = interval(mapping(teacher.get("ci95")).get("accuracy"))
        looks = (TEACHER, "Teacher", "as trained", arm.slot, arm.shape)
        found.append(_standing(shipped, looks, "test", mapping(teacher.get("mean")), ci, {}))
    seeds = list(dict.fromkeys(text(artefact.get("seed")) for _, artefact in artefacts))
    found += [_trained(result, shipped, seed, artefacts) for seed in seeds]
    return found + [_exported(shipped, name, artefact) for name, artefact in artefacts]


def _timed(shipped: Record) -> list[Conditions]:
    rows = records(mapping(shipped.get("measured")).get("rows"))
    return [made for row in rows if (made := _conditions(row)) is not None]


def _conditions(row: Record) -> Conditions | None:
    batch, threads = number(row.get("batch")), number(row.get("threads"))
    return None if batch is None or threads is None else Conditions(batch, threads, number(row.get("length")))


def _trained(result: Record, shipped: Record, seed: str, artefacts: Sequence[tuple[str, Record]]) -> Standing:
    """The trained student of a seed, on the split that its artefacts are described on."""
    arm = ARMS["kd"]
    its = [artefact for _, artefact in artefacts if text(artefact.get("seed")) == seed]
    metrics = mapping(mapping(its[0].get("validation")).get("trained"))
    split = "validation"
    if any(mapping(artefact.get("check")) for artefact in its):
        runs = records(mapping(mapping(result.get("arms")).get("kd")).get("seeds"))
        metrics = mapping(next((run for run in runs if text(run.get("seed")) == seed), {}).get("metrics"))
        split = "test"
    looks = (STUDENT, "Trained student", f"PyTorch, seed {seed}" if seed else "PyTorch", arm.slot, arm.shape)
    return _standing(shipped, looks, split, metrics, None, {})


def _exported(shipped: Record, name: str, artefact: Record) -> Standing:
    test = mapping(mapping(artefact.get("check")).get("test"))
    checked = mapping(test.get("metrics"))
    slot = "int8" if artefact.get("precision") == "int8" else "exported"
    shape = _SHAPES.get(text(artefact.get("format")), "square")
    looks = (name, name, described(artefact), slot, shape)
    ci = interval(mapping(test.get("ci95")).get("accuracy"))
    return _standing(
        shipped, looks, "test" if checked else "validation", checked or _with_temperature(artefact), ci, artefact
    )


def _with_temperature(artefact: Record) -> Record:
    """An unchecked artefact's metrics on validation, its NLL and ECE with the temperature that is stored with it."""
    metrics, calibration = (
        mapping(mapping(artefact.get("validation")).get("artefact")),
        mapping(artefact.get("calibration")),
    )
    if calibration.get("helps") is not True:
        return metrics
    after = {key: before_and_after(calibration.get(key))[1] for key in ("nll", "ece")}
    return {**metrics, **{key: value for key, value in after.items() if value is not None}}


def before_and_after(value: object) -> tuple[float | None, float | None]:
    """``[before, after]``, which unlike an interval may fall."""
    pair = sequence(value)
    return (number(pair[0]), number(pair[1])) if len(pair) == 2 else (None, None)


def _standing(
    shipped: Record,
    looks: tuple[str, str, str, str, str],
    split: str,
    metrics: Record,
    ci: tuple[float, float] | None,
    artefact: Record,
) -> Standing:
    key, measured, parity = looks[0], mapping(shipped.get("measured")), mapping(artefact.get("parity"))
    one, memory = measured_row(shipped, key, single(shipped)), mapping(mapping(measured.get("memory")).get(key))
    size = number(mapping(measured.get("bytes")).get(key))
    return Standing(
        *looks,
        split=split,
        metrics=metrics,
        ci=ci,
        max_abs=number(parity.get("max_abs")),
        agreement=number(parity.get("agreement")),
        size=number(artefact.get("bytes")) if size is None else size,
        latency=number(one.get("p50")),
        spread=interval(one.get("spread")),
        throughput=number(measured_row(shipped, key, bulk(shipped)).get("throughput")),
        memory=number(memory.get("peak_bytes")),
        runtime=number(memory.get("runtime_bytes")),
        price=number(mapping(mapping(measured.get("price")).get("per_million")).get(key)),
        flops=number(mapping(measured.get("flops")).get(key)),
    )

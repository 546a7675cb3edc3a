"""The gates, asked of the artefact itself: what answers on the test split is the file that will run, not the trained module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data import Tokenise, TransferSet
from tutelage.errors import ConfigError, ExportError
from tutelage.evaluation import crossed_interval, paired_comparison
from tutelage.evaluation.cost import count_flops, stored_bytes
from tutelage.export import (
    Artefact,
    ModuleRunner,
    Runner,
    Subject,
    check_parity,
    cost_per_million,
    input_specs,
    inspect_onnx,
    measure_running,
    named,
    parity_cases,
)
from tutelage.export.specs import LENGTH
from tutelage.files import sha256_of
from tutelage.models.calling import Inputs
from tutelage.models.saving import WEIGHTS_FILE
from tutelage.studies.answering import Said, answers, limits, runner_of
from tutelage.studies.building import pool, preprocessing
from tutelage.studies.evidence import correctness, slice_tables
from tutelage.studies.finished import FinishedRun
from tutelage.studies.gates import JUDGED
from tutelage.studies.judging import Beside, decide, gate_of, judge
from tutelage.studies.ledger import update_shipped
from tutelage.studies.records import arm_record, comparisons
from tutelage.studies.teaching import deployed_module, on_cpu
from tutelage.studies.typical import typical_example

Json = dict[str, Any]
Say = Callable[[str], None]

#: Batch sizes that latency is measured at, and how long, in seconds, in all.
MEASURED_BATCHES = (1, 32)
MEASURED_SECONDS = 20.0


#: What each format's runtime is imported as: it is not counted as the model's memory.
_RUNTIMES = {
    "onnx": ("onnxruntime",),
    "executorch": ("executorch.extension.pybindings.portable_lib",),
    "safetensors": (),
}


@dataclass(frozen=True)
class Price:
    """What the machine costs that the model will run on.

    Args:
        per_hour: of the whole machine.
        currency: in words or a sign.
    """

    per_hour: float
    currency: str = "$"

    def __post_init__(self) -> None:
        if not self.per_hour > 0:
            raise ConfigError(
                f"a price of {self.per_hour} an hour, expected more than 0: no cost could be told from it"
            )


def check_artefact(
    run: FinishedRun,
    name: str,
    artefact: Artefact,
    measured: Mapping[str, Any],
    *,
    baseline: Artefact | None = None,
    say: Say = lambda _: None,
) -> Json:
    """Judge an artefact by the run's gates, and write what was found into ``shipped.json``.

    The artefact is one model: against the teacher its test examples are the sample. A gain over a control is asked of the recipe
    over all its seeds, with what the export changed added to each: the artefact is the best of those seeds on validation, and
    beats the average of a worthless control by being picked. Calibration is that of the logits divided by the artefact's own temperature.

    Args:
        run: the run that made it.
        name: what it is called in ``shipped.json``.
        artefact: it, verified.
        measured: what :func:`measure_shipped` found of it, of the teacher and of whatever was timed in the same turns.
        baseline: one that was shipped before, for the same classes; its flips are counted.
        say: hears in a line what is being done.

    Returns:
        The artefact's ``check`` in ``shipped.json``.

    Raises:
        ExportError: the artefact, or the baseline, is another run's or of other classes.
    """
    verify_artefact(run, artefact, baseline)
    test = run.study.splits.test
    labels = test.known_labels.numpy()
    runner = runner_of(run, artefact)
    say("asking it the test split")
    logits = _recorded(run, artefact)
    logits = {JUDGED: (answers(runner, test) / artefact.temperature)[None], **logits}
    flips = _baseline(run, baseline, logits[JUDGED], labels) if baseline is not None else None
    correct = {arm: correctness(values, labels) for arm, values in logits.items()}
    slices = slice_tables(correct[JUDGED], correct["teacher"], test, run.result["classes"])
    record = arm_record("the artefact", [], logits[JUDGED], logits["teacher"][0], labels)
    recipe = correctness(run.test_logits[JUDGED], labels) + correct[JUDGED] - correct["student"]
    compared = _comparisons(logits, recipe, correct, labels)
    beside = Beside(
        correct={arm: values for arm, values in correct.items() if arm != "student"},
        recipe=recipe,
        slices=slices,
        baseline_flips=flips.record if flips is not None else None,
        baseline_correct=flips.correct if flips is not None else None,
        one_model=True,
        what="The artefact",
    )
    verdict = judge(run.study.gates, {JUDGED: record}, compared, _cost(measured, name, artefact), beside)
    gates = [_parity_gate(run, artefact, runner), *verdict["gates"]]
    check: Json = {
        "decision": decide(gates) if verdict["gates"] else "hold",
        "gates": gates,
        **_measures(record, len(test)),
        "comparisons": [{**row, "a": "artefact"} for row in compared],
        "slices": slices,
        "flips": {"teacher": _flips_of(record), "baseline": flips.record if flips is not None else None},
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def write(shipped: Json) -> None:
        shipped.setdefault("artefacts", {}).setdefault(name, {})["check"] = check
        shipped["measured"] = dict(measured)

    update_shipped(run.folder, write)
    return check


def verify_artefact(run: FinishedRun, artefact: Artefact, baseline: Artefact | None = None) -> None:
    """Find out, before anything of it is run, that an artefact is this run's, and that a baseline can be compared with it.

    Raises:
        ExportError: it is not, or its model is not what its manifest says.
    """
    _same_run(run, artefact)
    _inspect(artefact)
    if baseline is not None:
        _inspect(baseline)
        _same_classes(run, baseline)
        _baselines_view(run, baseline)


def _comparisons(
    logits: Mapping[str, NDArray[np.float32]],
    recipe: NDArray[np.float64],
    correct: Mapping[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
) -> list[Json]:
    """The artefact against teacher and trained student on each metric, and its recipe against each control on accuracy."""
    models = {arm: logits[arm] for arm in (JUDGED, "teacher", "student")}
    rows = comparisons(JUDGED, models, labels)
    for arm in logits.keys() - models.keys():
        compared = paired_comparison(recipe, correct[arm], "accuracy", higher_is_better=True)
        rows.append({"a": JUDGED, "b": arm, **compared.to_json()})
    return rows


def _measures(record: Mapping[str, Any], examples: int) -> Json:
    mean = record["mean"]
    agreement = mean["agreement"]
    return {
        "test": {"metrics": mean, "ci95": record["ci95"], "agreement_with_teacher": agreement, "examples": examples}
    }


def _flips_of(record: Mapping[str, Any]) -> Json:
    return {"rate": record["mean"]["negative_flips"], "ci95": record["ci95"]["negative_flips"]}


def measure_shipped(
    run: FinishedRun,
    artefacts: Mapping[str, Artefact],
    *,
    price: Price | None = None,
    seconds: float = MEASURED_SECONDS,
) -> Json:
    """Latency, throughput, memory, size and FLOPs of teacher, trained student and artefacts: ``measured`` of ``shipped.json``."""
    for artefact in artefacts.values():
        _inspect(artefact)
    test = run.study.splits.test.for_evaluation()
    first = test.batch(torch.arange(min(max(MEASURED_BATCHES), len(test))))
    given = {"teacher": first.get("teacher", first["student"]), "student": first["student"]}
    seed = next(iter(artefacts.values())).manifest["run"]["seed"] if artefacts else run.seed
    modules = {"student": run.student(seed)}
    teacher = deployed_module(run.teacher)
    with ExitStack() as stack:
        if teacher is not None:
            modules = {"teacher": stack.enter_context(on_cpu(teacher)).eval(), **modules}
        subjects = [Subject(name, _module_maker(module), given[name]) for name, module in modules.items()]
        subjects += [
            Subject(name, _artefact_maker(run, artefact), given["student"], _RUNTIMES[artefact.format])
            for name, artefact in artefacts.items()
        ]
        batches = _batches(artefacts.values())
        lengths = _lengths(given["student"])
        measured = measure_running(subjects, batches=batches, lengths=lengths, seconds=seconds).to_json()
        sizes = {name: stored_bytes(module) for name, module in modules.items()}
        alone = typical_example(test)
        flops = {name: count_flops(module, alone[name]) for name, module in modules.items()}
    measured["measured"] = datetime.now(UTC).isoformat(timespec="seconds")
    measured["bytes"] = sizes | {name: artefact.bytes for name, artefact in artefacts.items()}
    # an exported graph does the arithmetic of the student it came from; in int8 it is no floating-point operation any more
    measured["flops"] = flops | {
        name: flops["student"] if artefact.precision == "fp32" else None for name, artefact in artefacts.items()
    }
    measured["price"] = _priced(measured["rows"], price) if price is not None else None
    return measured


@dataclass(frozen=True)
class _BaselineFlips:
    """Where a previously shipped artefact was right and this one is not."""

    record: Json
    correct: NDArray[np.float64]


def _baseline(
    run: FinishedRun, baseline: Artefact, logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> _BaselineFlips:
    classes = run.result["classes"]
    test = _baselines_view(run, baseline)
    said = answers(runner_of(run, baseline), test)
    order = [baseline.classes.index(name) for name in classes]
    before = correctness(said[:, order][None], labels)
    flips = before * (1 - correctness(logits, labels))
    estimate = crossed_interval(flips)
    fields = estimate.to_json()
    return _BaselineFlips(
        {
            "rate": estimate.mean,
            "ci95": fields["ci95"],
            "method": estimate.method,
            "accuracy": float(before.mean()),
            "folder": str(baseline.folder),
            "digest": baseline.digest,
        },
        before,
    )


def _same_classes(run: FinishedRun, baseline: Artefact) -> None:
    classes = run.result["classes"]
    if sorted(baseline.classes) != sorted(classes):
        raise ExportError(
            f"the baseline {baseline.folder} tells {len(baseline.classes)} classes apart ({_some(baseline.classes)}), this run "
            f"{len(classes)} ({_some(classes)}): their answers cannot be compared; name an artefact for the same classes"
        )


def _inspect(artefact: Artefact) -> None:
    """Find out that a model file is what its manifest says before anything runs it."""
    if artefact.format != "onnx":
        return
    facts = inspect_onnx(artefact.model)
    if facts.inputs != artefact.inputs:
        raise ExportError(
            f"{artefact.model} takes {_some([spec.name for spec in facts.inputs])} in other shapes or types than its manifest says: it "
            "would be fed what it does not expect; export it anew"
        )


def _baselines_view(run: FinishedRun, baseline: Artefact) -> TransferSet:
    """The test split as the baseline takes it: with its own tokenizer, or with the same steps as this run's."""
    test = run.study.splits.test
    theirs, ours = baseline.manifest["preprocessing"], preprocessing(test)
    if theirs["tokenizer"] and not hasattr(test.inputs, "shape") and not isinstance(test.inputs, Mapping):
        return replace(test, student_view=Tokenise(baseline.folder, theirs["max_length"]))
    if theirs["steps"] != ours["steps"]:
        raise ExportError(
            f"the baseline {baseline.folder} was made for other preprocessing ({_some(theirs['steps']) or 'none'}; here "
            f"{_some(ours['steps']) or 'none'}): it would be asked about inputs that it does not know; check it beside a run with its views"
        )
    return test


def _recorded(run: FinishedRun, artefact: Artefact) -> dict[str, NDArray[np.float32]]:
    """What teacher, controls and the trained student of the artefact's seed said when the run finished."""
    seed = run.seeds.index(artefact.manifest["run"]["seed"])
    recorded = run.test_logits
    return {
        "teacher": recorded["teacher"],
        "student": recorded[JUDGED][seed : seed + 1],
        **{arm: values for arm, values in recorded.items() if arm not in ("teacher", JUDGED)},
    }


def _same_run(run: FinishedRun, artefact: Artefact) -> None:
    made_of = artefact.manifest["run"]
    seed = made_of.get("seed")
    weights = run.folder / JUDGED / f"seed-{seed}" / WEIGHTS_FILE
    if seed not in run.seeds or not weights.is_file() or made_of.get("weights_sha256") != sha256_of(weights):
        raise ExportError(
            f"{artefact.folder} was not made of a student of {run.folder} (it is of {made_of.get('title', 'a run without a title')!r}, "
            f"seed {seed}): it would be judged by evidence that is not its own; export this run, or check the run it came from"
        )
    if artefact.classes != run.result["classes"]:
        raise ExportError(
            f"{artefact.folder} names other classes than the run: {_some(artefact.classes)} and {_some(run.result['classes'])}; "
            "export it anew"
        )


def _parity_gate(run: FinishedRun, artefact: Artefact, runner: Runner) -> Json:
    student = run.student(artefact.manifest["run"]["seed"])
    asked = pool(run.study.splits.validation.for_evaluation())
    cases = parity_cases(asked, artefact.inputs, student, *limits(runner))
    int8 = artefact.precision == "int8"
    parity = check_parity(student, runner, cases, int8=int8)
    value = parity.agreement if parity.tolerance is None else parity.max_abs
    broken = Said.of(student, runner, run.study.splits.validation).broken(int8) if parity.passed else None
    why = f"On {len(cases)} combinations of batch and length: {parity.why}" + (f"; {broken}." if broken else ".")
    return gate_of("parity", value, parity.tolerance, parity.passed and broken is None, why)


def _cost(measured: Mapping[str, Any], name: str, artefact: Artefact) -> Json:
    """The artefact's cost beside the teacher's, in the shape of ``result.json``'s ``cost``."""
    threads = min(row["threads"] for row in measured["rows"])
    batch = min(row["batch"] for row in measured["rows"])
    longest = max(row["length"] or 0 for row in measured["rows"])
    first = {
        row["model"]: {"p50": row["p50"], "spread": row["spread"], "waited": row.get("waited"), "batch": batch}
        for row in measured["rows"]
        if (row["threads"], row["batch"], row["length"] or 0) == (threads, batch, longest)
    }
    cost: Json = {"student": {"bytes": artefact.bytes, "latency_ms": first[name]}}
    if "teacher" in first:
        cost["teacher"] = {"bytes": measured["bytes"]["teacher"], "latency_ms": first["teacher"]}
    return cost


def _batches(artefacts: Iterable[Artefact]) -> tuple[int, ...]:
    """The batch sizes that are measured; the largest that all of them take where one has a bound below."""
    most = min((artefact.manifest.get("max_batch") or max(MEASURED_BATCHES) for artefact in artefacts), default=None)
    return tuple(sorted({min(batch, most or batch) for batch in MEASURED_BATCHES}))


def _lengths(inputs: Inputs) -> tuple[int | None, ...]:
    """For tokens the length of these inputs and a quarter of it; (None,) where there are no tokens."""
    tokens = [named(inputs)[spec.name].shape[1] for spec in input_specs(inputs) if LENGTH in spec.shape]
    return tuple(sorted({max(1, tokens[0] // 4), tokens[0]})) if tokens else (None,)


def _priced(rows: Sequence[Mapping[str, Any]], price: Price) -> Json:
    """At the best throughput that was measured of each model: what a machine that is kept busy would cost."""
    best: dict[str, float] = {}
    for row in rows:
        best[row["model"]] = max(best.get(row["model"], 0.0), row["throughput"])
    return {
        "per_hour": price.per_hour,
        "currency": price.currency,
        "per_million": {model: cost_per_million(throughput, price.per_hour) for model, throughput in best.items()},
    }


def _module_maker(module: Any) -> Callable[[int], Runner]:
    return lambda threads: ModuleRunner(module)  # noqa: ARG005


def _artefact_maker(run: FinishedRun, artefact: Artefact) -> Callable[[int], Runner]:
    if artefact.format == "safetensors":
        runner = runner_of(run, artefact)
        return lambda threads: runner  # noqa: ARG005
    folder = Path(artefact.folder).resolve()

    def make(threads: int) -> Runner:
        from tutelage.export import open_runner, read_artefact

        return open_runner(read_artefact(folder), threads)

    return make


def _some(names: Sequence[Any], most: int = 5) -> str:
    shown = ", ".join(map(str, names[:most]))
    return f"{shown}, …" if len(names) > most else shown

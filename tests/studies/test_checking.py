"""The artefact itself answers on the test split, and is judged by what it says there."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import blobs, splits, study

from tutelage import Study
from tutelage.errors import ConfigError, ExportError
from tutelage.export import Artefact, open_runner, read_artefact
from tutelage.studies import Gates, checking
from tutelage.studies.checking import Price, check_artefact, measure_shipped
from tutelage.studies.finished import FinishedRun, open_run
from tutelage.studies.ledger import listed, read_shipped
from tutelage.studies.shipping import export_student

DEVICES = ["phone", "tablet", "desktop"]
ROWS = [
    {
        "model": model,
        "threads": threads,
        "batch": batch,
        "length": None,
        "p50": time * batch,
        "spread": [0.9 * time, 1.1 * time],
        "throughput": 1e3 / time,
    }
    for model, time in (("teacher", 2.0), ("student", 0.5), ("onnx", 0.25))
    for threads in (1, 2)
    for batch in (1, 32)
]


class Stopwatch:
    """Stands for the measuring, which has tests of its own; it notes who was measured."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, subjects: Any, **_: Any) -> "Stopwatch":
        self.names = [subject.name for subject in subjects]
        return self

    def to_json(self) -> dict[str, Any]:
        return {"cpu": {"name": "a cpu"}, "rows": [dict(row) for row in ROWS], "memory": {}}


@pytest.fixture(autouse=True)
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(checking, "measure_running", watch)
    return watch


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("run")
    test = blobs(45, 3)
    test = replace(test, metadata={"device": [DEVICES[index % 3] for index in range(45)]})
    gates = Gates(
        accuracy_drop_vs_teacher=0.3,
        gain_over_scratch=-0.5,
        size_ratio=20.0,
        latency_ratio=0.2,
        worst_class_drop=0.9,
        worst_slice_drop=0.9,
        negative_flips_vs_baseline=0.5,
        ece=0.9,
    )
    ran = study(splits=replace(splits(), test=test), gates=gates, seeds=3)
    ran.run(folder)
    export_student(open_run(ran, folder), "onnx")
    return ran, folder


@pytest.fixture
def run(exported: tuple[Study, Path], tmp_path: Path) -> FinishedRun:
    shutil.copytree(exported[1], tmp_path / "run")
    return open_run(exported[0], tmp_path / "run")


@pytest.fixture
def artefact(run: FinishedRun) -> Artefact:
    return read_artefact(run.folder / "export" / "onnx")


def checked(run: FinishedRun, artefact: Artefact, price: Price | None = None, **options: Any) -> dict[str, Any]:
    return check_artefact(run, "onnx", artefact, measure_shipped(run, {"onnx": artefact}, price=price), **options)


def right(artefact: Artefact, run: FinishedRun) -> Any:
    logits = open_runner(artefact)(run.study.splits.test.inputs)
    return logits.argmax(1) == run.study.splits.test.known_labels.numpy()


def test_the_numbers_are_the_artefacts_own(run: FinishedRun, artefact: Artefact) -> None:
    """The trained student's numbers under the artefact's name would pass any ruined export."""
    check = checked(run, artefact)
    assert check["test"]["metrics"]["accuracy"] == pytest.approx(right(artefact, run).mean())
    assert check["test"]["examples"] == 45
    assert {(row["a"], row["b"]) for row in check["comparisons"]} == {
        ("artefact", other) for other in ("teacher", "student", "scratch", "label_smoothing")
    }
    against = {row["b"]: row for row in check["comparisons"] if row["metric"] == "accuracy"}
    assert against["teacher"]["seeds"] == 1
    assert against["scratch"]["seeds"] == 3
    assert against["student"]["difference"] == 0.0
    assert read_shipped(run.folder)["artefacts"]["onnx"]["check"] == check


def test_every_gate_that_was_set_is_asked_of_it(run: FinishedRun, artefact: Artefact, stopwatch: Stopwatch) -> None:
    """A gate that is silently left out lets through what it was set against."""
    check = checked(run, artefact, baseline=artefact)
    gates = {gate["name"]: gate for gate in check["gates"]}
    asked = {name for name, limit in vars(run.study.gates).items() if limit is not None}
    assert set(gates) == asked | {"parity"}
    assert gates["parity"]["passed"]
    assert gates["size_ratio"]["value"] == pytest.approx(artefact.bytes / (4 * (8 * 3 + 3)))
    assert gates["latency_ratio"]["value"] == pytest.approx(0.25 / 2.0)
    assert stopwatch.names == ["teacher", "student", "onnx"]
    assert set(check["slices"]) == {"class", "device"}
    assert {row["slice"] for row in check["slices"]["device"]} == set(DEVICES)
    assert check["decision"] == "ship", gates


def test_a_gate_that_fails_rejects_and_no_gates_at_all_hold(run: FinishedRun, artefact: Artefact) -> None:
    """'Reject' must come of one failure, and 'ship' never of nothing asked."""
    strict = replace(run, study=replace(run.study, gates=replace(run.study.gates, latency_ratio=0.1)))
    assert checked(strict, artefact)["decision"] == "reject"
    unasked = Gates(accuracy_drop_vs_teacher=None, gain_over_scratch=None)
    none = replace(run, study=replace(run.study, gates=unasked))
    check = checked(none, artefact)
    assert [gate["name"] for gate in check["gates"]] == ["parity"]
    assert check["decision"] == "hold"


def test_parity_is_asked_again_and_fails_the_check(
    run: FinishedRun, artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another runtime's version on the deploying machine may answer otherwise than the one that exported."""

    def shifted(*arguments: Any) -> Any:
        inner = open_runner(artefact)
        return lambda inputs: inner(inputs) + np.float32(0.01)

    monkeypatch.setattr(checking, "runner_of", shifted)
    check = checked(run, artefact)
    assert check["decision"] == "reject"
    assert check["gates"][0]["name"] == "parity"
    assert check["gates"][0]["passed"] is False


def test_flips_against_a_baseline_are_counted(run: FinishedRun, artefact: Artefact, tmp_path: Path) -> None:
    """A release with the same accuracy may break other examples than before, and users notice those."""
    mine = artefact.manifest["run"]["seed"]
    other = next(seed for seed in run.seeds if seed != mine)
    baseline = export_student(run, "onnx", seed=other, out=tmp_path / "before")
    check = checked(run, artefact, baseline=baseline)
    expected = (right(baseline, run) & ~right(artefact, run)).mean()
    assert check["flips"]["baseline"]["rate"] == pytest.approx(expected)
    assert check["flips"]["baseline"]["accuracy"] == pytest.approx(right(baseline, run).mean())
    low, high = check["flips"]["baseline"]["ci95"]
    assert low <= expected <= high
    assert checked(run, artefact, baseline=artefact)["flips"]["baseline"]["rate"] == 0.0


def renamed(artefact: Artefact, **changes: Any) -> Artefact:
    return replace(artefact, manifest={**artefact.manifest, **changes})


def test_a_baselines_classes_are_matched_by_name(run: FinishedRun, artefact: Artefact) -> None:
    """An older artefact may number its classes otherwise: every answer would count as a flip, or none."""
    flips = checked(run, artefact, baseline=renamed(artefact, classes=["1", "0", "2"]))["flips"]
    test = run.study.splits.test
    said = open_runner(artefact)(test.inputs)[:, [1, 0, 2]].argmax(1) == test.known_labels.numpy()
    assert flips["baseline"]["rate"] == pytest.approx((said & ~right(artefact, run)).mean())
    with pytest.raises(ExportError, match="tells 2 classes apart"):
        checked(run, artefact, baseline=renamed(artefact, classes=["0", "1"]))
    steps = {"steps": ["Normalise(mean=9, std=1)"], "tokenizer": False, "max_length": None}
    with pytest.raises(ExportError, match="other preprocessing"):
        checked(run, artefact, baseline=renamed(artefact, preprocessing=steps))


def test_another_runs_artefact_is_refused(run: FinishedRun, artefact: Artefact) -> None:
    """It would be shipped on the evidence of a model that it is not."""
    made_of = artefact.manifest["run"]
    other = next(seed for seed in run.seeds if seed != made_of["seed"])
    for change in ({"weights_sha256": "0" * 64, "title": "other"}, {"seed": other}, {"seed": 99}):
        with pytest.raises(ExportError, match="was not made of a student of"):
            check_artefact(run, "onnx", renamed(artefact, run={**made_of, **change}), {})
    with pytest.raises(ExportError, match="other classes"):
        checked(run, renamed(artefact, classes=["a", "b", "c"]))


def test_calibration_is_that_of_the_tempered_logits(run: FinishedRun, artefact: Artefact) -> None:
    """The temperature is shipped with the artefact: an ECE without it is of something nobody runs."""
    from tutelage.evaluation import classification_metrics

    test = run.study.splits.test
    logits = open_runner(artefact)(test.inputs) / 5.0
    hot = checked(run, renamed(artefact, temperature=5.0))
    expected = classification_metrics(logits, test.known_labels.numpy())
    assert hot["test"]["metrics"]["ece"] == pytest.approx(expected["ece"])
    assert hot["test"]["metrics"]["nll"] == pytest.approx(expected["nll"])


def test_a_million_inferences_are_priced_at_the_best_throughput(run: FinishedRun, artefact: Artefact) -> None:
    """At batch 1 on a machine with many cores the estimate would be many times what a busy one costs."""
    checked(run, artefact, price=Price(3.6, "€"))
    price = read_shipped(run.folder)["measured"]["price"]
    assert price["currency"] == "€"
    assert price["per_million"]["onnx"] == pytest.approx(3.6 / 3600 / 4000 * 1e6)
    with pytest.raises(ConfigError, match="expected more than 0"):
        Price(0.0)


def test_the_test_split_alone_decides(run: FinishedRun, artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation examples have chosen seed, temperature and int8 settings: judged on them the artefact would look better."""
    asked: list[torch.Tensor] = []
    inner = checking.answers

    def watching(runner: Any, transfer_set: Any) -> Any:
        asked.append(transfer_set.ids)
        return inner(runner, transfer_set)

    monkeypatch.setattr(checking, "answers", watching)
    checked(run, artefact)
    assert len(asked) == 1
    assert torch.equal(asked[0], run.study.splits.test.ids)


def test_the_gain_is_that_of_the_recipe(run: FinishedRun, artefact: Artefact) -> None:
    """The best of three students beats the average of a control that is just as good: picking would pass for teaching."""
    check = checked(run, artefact)
    labels = run.study.splits.test.known_labels.numpy()
    recorded = run.test_logits
    rights = {arm: (logits.argmax(2) == labels).mean() for arm, logits in recorded.items()}
    row = next(row for row in check["comparisons"] if row["b"] == "scratch")
    assert row["difference"] == pytest.approx(rights["kd"] - rights["scratch"]), "this export changed no answer"
    study_row = next(row for row in run.result["comparisons"] if (row["b"], row["metric"]) == ("scratch", "accuracy"))
    assert row["ci95"] == pytest.approx(study_row["ci95"])


def test_what_an_export_loses_is_taken_from_the_gain(
    run: FinishedRun, artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ruined artefact would keep the gain of the student that it no longer is."""
    inner = checking.answers

    def ruined(runner: Any, transfer_set: Any) -> Any:
        logits = inner(runner, transfer_set)
        logits[: len(logits) // 2] *= -1
        return logits

    whole = {row["b"]: row for row in checked(run, artefact)["comparisons"] if row["metric"] == "accuracy"}
    monkeypatch.setattr(checking, "answers", ruined)
    broken = {row["b"]: row for row in checked(run, artefact)["comparisons"] if row["metric"] == "accuracy"}
    lost = broken["student"]["difference"]
    assert lost < -0.1
    assert broken["scratch"]["difference"] == pytest.approx(whole["scratch"]["difference"] + lost)


def test_a_baseline_that_was_not_named_holds(run: FinishedRun, artefact: Artefact) -> None:
    """A pipeline that forgets the flag would release without the question that the gate is there to ask."""
    check = checked(run, artefact)
    (gate,) = [gate for gate in check["gates"] if gate["name"] == "negative_flips_vs_baseline"]
    assert gate["passed"] is None
    assert "--baseline" in gate["why"]
    assert check["decision"] == "hold"


def test_two_artefacts_of_one_format_are_two(run: FinishedRun, artefact: Artefact, tmp_path: Path) -> None:
    """A second export elsewhere would take the first one's place, and its numbers the other's name."""
    other = next(seed for seed in run.seeds if seed != artefact.manifest["run"]["seed"])
    second = export_student(run, "onnx", seed=other, out=tmp_path / "last")
    known = read_shipped(run.folder)["artefacts"]
    assert known["onnx"]["digest"] == artefact.digest
    assert known["last"]["digest"] == second.digest
    assert (run.folder / known["last"]["folder"]).resolve() == second.folder.resolve()
    assert listed(run.folder, artefact) == "onnx"
    assert "validation" in read_shipped(run.folder)["artefacts"]["onnx"], "a check forgets nothing of the export"


def test_an_artefact_that_is_not_in_the_list_is_entered_from_its_manifest(run: FinishedRun, artefact: Artefact) -> None:
    """A deleted list, or an artefact from another machine, would be shown with an unknown format."""
    (run.folder / "shipped.json").unlink()
    name = listed(run.folder, artefact)
    entry = read_shipped(run.folder)["artefacts"][name]
    assert (name, entry["format"], entry["seed"]) == ("onnx", "onnx", artefact.manifest["run"]["seed"])
    changed = renamed(artefact, digest="f" * 64)
    assert listed(run.folder, changed) == "onnx"
    assert "check" not in read_shipped(run.folder)["artefacts"]["onnx"]


def test_int8_that_loses_the_validation_split_fails_its_parity(
    run: FinishedRun, artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty examples may agree where six thousand do not."""
    from tutelage.studies.answering import Said

    monkeypatch.setattr(Said, "broken", lambda self, int8: "9.0 points of validation accuracy are lost")
    gate = checked(run, artefact)["gates"][0]
    assert gate["passed"] is False
    assert "9.0 points" in gate["why"]


def test_no_artefact_is_timed_beyond_its_own_bound(run: FinishedRun, artefact: Artefact) -> None:
    """A mobile program for sixteen texts would end the measuring of all with an error at thirty-two."""
    assert checking._batches([artefact]) == (1, 32)
    assert checking._batches([artefact, renamed(artefact, max_batch=16)]) == (1, 16)
    assert checking._batches([]) == (1, 32)

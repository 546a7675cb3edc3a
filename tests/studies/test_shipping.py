"""A student leaves the house as it was judged, or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import CLASSES, WIDTH, splits, study
from torch import Tensor, nn

from tutelage import Study
from tutelage.data import Normalise
from tutelage.errors import CheckpointError, ConfigError, ExportError
from tutelage.evaluation import classification_metrics
from tutelage.export import open_runner, read_artefact
from tutelage.models.calling import Inputs
from tutelage.studies import building, shipping
from tutelage.studies.finished import FinishedRun, open_run
from tutelage.studies.ledger import read_shipped
from tutelage.studies.shipping import export_student

# a bound on the loss of accuracy that int8 cannot break by one example of thirty
SEEDS = [3, 7]


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, CLASSES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("run")
    ran = study(student=student, seeds=SEEDS, splits=splits(student_view=Normalise(0.1, 1.3)), title="blobs")
    ran.run(folder)
    return ran, folder


@pytest.fixture
def run(finished: tuple[Study, Path]) -> FinishedRun:
    return open_run(*finished)


def independent_logits(run: FinishedRun, seed: int, inputs: Tensor) -> NDArray[np.float32]:
    """The student by hand: its weights read from the run's file, and its layers multiplied out in float64."""
    from safetensors.numpy import load_file

    weights = load_file(run.folder / "kd" / f"seed-{seed}" / "model.safetensors")
    hidden = (inputs.double().numpy() - 0.1) / 1.3
    for layer in (0, 2, 4):
        hidden = hidden @ weights[f"{layer}.weight"].T.astype(np.float64) + weights[f"{layer}.bias"]
        hidden = np.maximum(hidden, 0) if layer < 4 else hidden
    return hidden


def test_an_onnx_artefact_answers_as_the_student_of_the_run(run: FinishedRun) -> None:
    """The wrong seed's weights, a view applied twice or a lost layer would all look like a model that works."""
    artefact = export_student(run, "onnx", seed=7)
    assert artefact.folder == run.folder / "export" / "onnx"
    validation = run.study.splits.validation
    view = validation.batch(torch.arange(len(validation)))["student"]
    got = open_runner(read_artefact(artefact.folder))(view)
    np.testing.assert_allclose(got, independent_logits(run, 7, validation.inputs), atol=1e-4)
    manifest = artefact.manifest
    assert manifest["run"] | {"title": "blobs", "arm": "kd", "seed": 7} == manifest["run"]
    assert manifest["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", WIDTH]}]
    assert manifest["classes"] == ["0", "1", "2"]
    assert manifest["preprocessing"]["steps"] == ["Normalise(mean=0.1, std=1.3)"]
    assert manifest["parity"]["why"] in (artefact.folder / "README.md").read_text()
    entry = read_shipped(run.folder)["artefacts"]["onnx"]
    assert len(entry["parity"]["cases"]) >= 6
    assert entry["parity"]["passed"]
    assert entry["bytes"] == (artefact.folder / "model.onnx").stat().st_size
    expected = classification_metrics(independent_logits(run, 7, validation.inputs), validation.known_labels.numpy())
    assert entry["validation"]["artefact"]["accuracy"] == expected["accuracy"]
    assert entry["validation"]["artefact"]["nll"] == pytest.approx(expected["nll"], abs=1e-4)


def test_the_best_student_on_validation_is_chosen(run: FinishedRun) -> None:
    """Chosen on test, or by its number, the shipped student's evidence would be worth nothing, or its quality chance."""
    validation = run.study.splits.validation
    ranked: list[tuple[float, float, int]] = []
    for seed in SEEDS:
        metrics = classification_metrics(
            independent_logits(run, seed, validation.inputs), validation.known_labels.numpy()
        )
        ranked.append((-metrics["accuracy"], metrics["nll"], seed))
    assert export_student(run, "onnx").manifest["run"]["seed"] == min(ranked)[2]


def test_int8_is_smaller_and_says_how_it_was_made(run: FinishedRun) -> None:
    """An int8 artefact in which nothing became int8 would be shipped for a gain that is not there."""
    fp32 = export_student(run, "onnx", seed=3)
    int8 = export_student(run, "onnx", seed=3, int8=True)
    assert int8.folder.name == "onnx-int8"
    assert int8.precision == "int8"
    assert int8.bytes < 0.5 * fp32.bytes
    assert int8.manifest["quantisation"]["method"] == "dynamic"
    assert int8.manifest["quantisation"]["tried"]
    assert sorted(path.name for path in int8.folder.iterdir()) == ["README.md", "manifest.json", "model.onnx"]
    assert set(read_shipped(run.folder)["artefacts"]) >= {"onnx", "onnx-int8"}, "one export does not forget another"


def test_int8_is_calibrated_on_training_examples_and_measured_on_others(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges taken from the examples they are measured on always fit; taken from the test split they would be cheating."""
    seen: dict[str, Any] = {}

    def watching(source: Path, target: Path, calibration: Any, search: Any, labels: Any) -> Any:
        seen.update(calibration=torch.cat(list(calibration)), search=search, labels=labels)
        raise ExportError("seen enough")

    monkeypatch.setattr(building, "quantise_onnx", watching)
    with pytest.raises(ExportError, match="seen enough"):
        export_student(run, "onnx", int8=True)
    train, validation = run.study.splits.train, run.study.splits.validation
    for name, part in (("calibration", train), ("search", validation)):
        rows = {tuple(row) for row in part.batch(torch.arange(len(part)))["student"].tolist()}
        assert {tuple(row) for row in seen[name].tolist()} <= rows, name
    assert seen["labels"].tolist() == validation.known_labels.tolist()


def test_an_artefact_that_answers_otherwise_is_set_aside(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter's slip would go into production under the verdict of another model."""
    out = run.folder / "elsewhere"

    def slipping(artefact: Any, threads: Any = None, module: Any = None) -> Any:
        right = open_runner(artefact, threads, module)

        def runner(inputs: Inputs) -> NDArray[np.float32]:
            return right(inputs) + np.float32(1e-3)

        return runner

    monkeypatch.setattr(shipping, "open_runner", slipping)
    with pytest.raises(ExportError, match=r"does not answer as the trained student.*elsewhere\.failed"):
        export_student(run, "onnx", out=out)
    assert not out.exists()
    assert (run.folder / "elsewhere.failed" / "model.onnx").is_file()
    with pytest.raises(ExportError, match="failed when it was exported"):
        read_artefact(run.folder / "elsewhere.failed")
    assert not list(run.folder.glob(".*part")), "nothing half made is left"


def test_what_parity_missed_is_found_on_the_validation_split(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity asks a few dozen examples; an operator that fails on rare values would pass them."""
    asked = []

    def rarely(artefact: Any, threads: Any = None, module: Any = None) -> Any:
        right = open_runner(artefact, threads, module)

        def runner(inputs: Inputs) -> NDArray[np.float32]:
            asked.append(len(inputs))
            return right(inputs) + (np.float32(1.0) if len(asked) > 6 else np.float32(0.0))

        return runner

    monkeypatch.setattr(shipping, "open_runner", rarely)
    with pytest.raises(ExportError, match="on the validation split a logit is 1 from"):
        export_student(run, "onnx", out=run.folder / "rare")
    assert not (run.folder / "rare").exists()


def test_a_run_that_is_not_there_or_not_done_is_refused(tmp_path: Path, run: FinishedRun) -> None:
    """A student that was cut off in training would be exported as the one that was judged."""
    with pytest.raises(ConfigError, match="does not exist"):
        open_run(run.study, tmp_path / "absent")
    with pytest.raises(ConfigError, match="no folder of a run"):
        open_run(run.study, tmp_path)
    (tmp_path / "kd" / "seed-3").mkdir(parents=True)
    with pytest.raises(ConfigError, match="did not finish"):
        open_run(run.study, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(run.result))
    with pytest.raises(ConfigError, match="no finished student"):
        export_student(open_run(run.study, tmp_path), "onnx", seed=3)
    with pytest.raises(ConfigError, match="--seed 4: the run has the seeds 3, 7"):
        export_student(run, "onnx", seed=4)


def test_a_student_whose_code_changed_is_refused(run: FinishedRun) -> None:
    """The same weights in other code are another model: the verdict would be about something that is not exported."""

    class Changed(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return 1.1 * super().forward(input)

    changed = replace(run.study, student=lambda: Changed(*student()))
    with pytest.raises(CheckpointError, match="does not answer as it did when it was judged"):
        export_student(open_run(changed, run.folder), "onnx")


def test_other_test_examples_are_refused(run: FinishedRun) -> None:
    """Stored answers would be compared with new ones about other examples."""
    other = replace(run.study, splits=replace(run.study.splits, test=run.study.splits.test.select(torch.arange(20))))
    with pytest.raises(CheckpointError, match="tested on other examples"):
        export_student(open_run(other, run.folder), "onnx")


def test_relabelled_test_examples_are_refused(run: FinishedRun) -> None:
    """The ids are of the inputs alone: other labels would judge the student by answers that it was not judged by."""
    test = run.study.splits.test
    labels = test.known_labels.clone()
    labels[0] = (labels[0] + 1) % CLASSES
    other = replace(run.study, splits=replace(run.study.splits, test=test.with_labels(labels)))
    with pytest.raises(CheckpointError, match="1 of the 45 test examples have other labels"):
        export_student(open_run(other, run.folder), "onnx")


def test_a_student_of_another_shape_is_refused_in_our_words(run: FinishedRun) -> None:
    """torch's own message lists tensors, and the remedy of a checkpoint is not that of a run."""
    wider = replace(run.study, student=lambda: nn.Linear(WIDTH, CLASSES))
    with pytest.raises(CheckpointError, match="do not fit the student that its code builds now"):
        export_student(open_run(wider, run.folder), "onnx")


def test_formats_that_make_no_sense_are_refused_before_anything_is_made(run: FinishedRun, tmp_path: Path) -> None:
    """int8 for a folder of weights would write float weights under a name that promises less."""
    with pytest.raises(ConfigError, match="--int8 with --to safetensors"):
        export_student(run, "safetensors", int8=True)
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ExportError, match="no artefact of tutelage"):
        export_student(run, "onnx", out=tmp_path)


def test_a_folder_of_weights_holds_the_student_and_nothing_else(run: FinishedRun) -> None:
    """Other libraries load these weights by name: a renamed or missing tensor is a random layer there."""
    artefact = export_student(run, "safetensors", seed=3)
    fresh = student()
    from safetensors.torch import load_model

    load_model(fresh, str(artefact.model))
    inputs = run.study.splits.test.batch(torch.arange(5))["student"]
    with torch.no_grad():
        got = fresh(inputs).numpy()
    np.testing.assert_allclose(got, independent_logits(run, 3, run.study.splits.test.inputs[:5]), atol=1e-5)


def test_a_damaged_record_of_exports_is_an_error(run: FinishedRun, tmp_path: Path) -> None:
    """Read as empty, it would be overwritten, and with it every check of the artefacts before."""
    (tmp_path / "shipped.json").write_text("{half")
    with pytest.raises(ExportError, match="cannot be read"):
        read_shipped(tmp_path)

"""The published experiments: every config fits together, the tables say what the runs left, and the teacher's memory changes nothing."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_model

from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.models import import_from_file

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "published"
CONFIGS = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
NAMES = ["temperature", "unseen_class", "small_students", "assistant", "ensemble", "few_labels", "regulariser"]


@pytest.fixture(autouse=True)
def without_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST is not at hand, which is so on most machines, and quicker."""
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / "nothing"))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the command, imported as from the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [name for name in sys.modules if name == "examples" or name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)
    return {
        name: importlib.import_module(f"examples.published.{name}")
        for name in ("evidence", "experiments", "words", "__main__")
    }


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared teacher's weights, drawn by chance."""
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_model(import_from_file("models.py:cnn", FOLDER)(), str(path))
    return path


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_config_fits_together(config: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key renamed in passing would be found out by whoever runs the experiment, half an hour before its table."""
    path = FOLDER / config
    shared = "checkpoint" in path.read_text()
    overrides = [f"teacher.model.checkpoint={teacher}"] if shared else []
    if config.parent.name == "few_labels":
        overrides.append("data.labelled=100")
    settings: Any = load_config(path, overrides)
    study = build_study(settings, path.parent, "test")
    assert len(study.splits.train) > 1000
    assert "digits take the place" in capsys.readouterr().err
    if config.name != "teacher.yaml":
        assert len(study.seed_list) >= 5
        assert {"kd", "scratch"} <= set(study.objectives)


def test_the_fallback_is_cut_without_overlap() -> None:
    """A digit that stands on both sides would be tested on what it was learnt from."""
    pool, test = import_from_file("data.py:clothes_or_digits", FOLDER)()
    assert pool.inputs.shape[1:] == test.inputs.shape[1:] == (1, 28, 28)
    assert not torch.isin(pool.ids, test.ids).any()
    assert len(pool) + len(test) == 1797
    assert len(test) > 250


def test_a_teacher_that_remembers_says_the_same() -> None:
    """Answers joined to other images would teach noise; answers of the training mode would be kept with its dropout."""
    remembering = import_from_file("models.py:remembering_cnn", FOLDER)()
    plain = import_from_file("models.py:cnn", FOLDER)()
    plain.load_state_dict(remembering.state_dict())
    remembering.eval()
    plain.eval()
    images = torch.randn(150, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images[100] = images[7]
    asked: list[int] = []
    remembering[0].register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    with torch.no_grad():
        expected = plain(images)
        torch.testing.assert_close(remembering(images), expected)
        once = sum(asked)
        turned = torch.randperm(150, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(remembering(images[turned]), expected[turned])
        assert sum(asked) == once, "it was asked again"
        torch.testing.assert_close(remembering(images[:1]), expected[:1])
        assert sum(asked) == once + 1, "a single image's latency would be that of a look-up"
        remembering.train()
        assert not torch.allclose(remembering(images), expected), "dropout is off"


def scores(rng: np.random.Generator, accuracy: float, seeds: int = 5, examples: int = 4000) -> Any:
    return (rng.random((seeds, examples)) < accuracy).astype(np.float64)


def test_the_share_of_a_gap(published: dict[str, ModuleType]) -> None:
    """The aim is a share of a gap: one that could not fail, or whose interval is too narrow, would prove anything."""
    rng = np.random.default_rng(0)
    teacher, scratch, half = (scores(rng, accuracy) for accuracy in (0.95, 0.75, 0.85))
    share = published["evidence"].gap_share
    found = share(half, scratch, teacher[:1])
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx((half - scratch).mean() / (teacher[:1].mean() - scratch.mean()))
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    assert share(scratch, scratch, teacher[:1]).mean == 0
    nothing = share(half, scratch, scratch[:1])
    assert nothing.low == -np.inf or nothing.high == np.inf, "a gap that may be 0 has no share"


def leave_run(folder: Path, arms: dict[str, float], **more: Any) -> None:
    """A run's folder with an accuracy for each arm, as far as the tables look into it."""
    rng = np.random.default_rng(0)
    labels = np.arange(500) % 10
    records: dict[str, Any] = {}
    for arm, accuracy in arms.items():
        seeds = [None] if arm == "teacher" else [0, 1, 2, 3, 4]
        for seed in seeds:
            said = np.where(rng.random(500) < accuracy, labels, (labels + 1) % 10)
            place = folder / arm if seed is None else folder / arm / f"seed-{seed}"
            place.mkdir(parents=True)
            logits = np.eye(10, dtype=np.float32)[said]
            save_file({"logits": logits, "labels": labels}, str(place / "predictions.safetensors"))
        records[arm] = {
            "seeds": [{"seed": seed, "seconds": 90.0} for seed in seeds],
            "mean": {"accuracy": accuracy, "nll": 0.5},
            "ci95": {"accuracy": [accuracy - 0.01, None]},
        }
    cost = {"parameters": 1234, "flops_per_example": 2e6}
    result = {
        "tutelage": "0",
        "title": "1%",
        "classes": [str(index) for index in range(10)],
        "splits": {"train": 1000, "test": 500},
        "transfer": {"labelled": 10, "unlabelled": 990},
        "arms": records,
        "cost": {"teacher": cost | {"flops_per_example": 8e6}, "student": cost},
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result))


def test_a_table_says_what_the_runs_left(published: dict[str, ModuleType], tmp_path: Path) -> None:
    """The tables are what readers see: an arm in another's row, or a stale table, would be believed."""
    taught = {f"t{t}": 0.8 for t in (1, 2, 16, 64)} | {"t32": 0.97}
    leave_run(tmp_path / "published-temperature", {"kd": 0.85, "scratch": 0.7, **taught, "teacher": 0.95})
    leave_run(tmp_path / "published-temperature-function_matching", {"kd": 0.9, "scratch": 0.7, "teacher": 0.95})
    leave_run(tmp_path / "published-teacher", {"teacher": 0.95})
    readmes = tmp_path / "readmes"
    (readmes / "temperature").mkdir(parents=True)
    (readmes / "temperature" / "README.md").write_text("above <!-- results -->stale<!-- end of results --> below")
    (readmes / "README.md").write_text("| <!-- line of temperature --><!-- end of line of temperature --> |")
    command = published["__main__"]
    command.write_tables("temperature", command.EXPERIMENTS["temperature"], readmes, tmp_path)
    written = (readmes / "temperature" / "README.md").read_text()
    assert written.startswith("above <!-- results -->")
    assert written.endswith("<!-- end of results --> below")
    assert "stale" not in written
    rows = [line.split(" | ") for line in written.splitlines() if line.startswith("| ")]
    by_arm = {row[0].removeprefix("| "): row for row in rows}
    assert list(by_arm).index("T = 2") < list(by_arm).index("T = 4") < list(by_arm).index("T = 16")
    assert by_arm["T = 32"][1] == "97.0 (96.0 to unbounded)"
    assert by_arm["T = 32"][3].startswith("**+2")
    assert "1,234" in written
    assert "4.0 times fewer" in written
    assert "On scikit-learn's digits" in written
    assert "5 seeds" in written
    index = (readmes / "README.md").read_text()
    assert "`t32`" in index
    assert "% of the gap" in index


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_has_a_place_for_what_its_command_writes(name: str, published: dict[str, ModuleType]) -> None:
    """Without its place a table would be lost after the experiment has run."""
    assert set(published["experiments"].EXPERIMENTS) == set(NAMES)
    text = (FOLDER / name / "README.md").read_text()
    assert "<!-- results -->" in text
    assert "<!-- end of results -->" in text
    assert f"python -m examples.published {name}" in text
    index = (FOLDER / "README.md").read_text()
    assert f"<!-- line of {name} -->" in index
    assert f"<!-- end of line of {name} -->" in index


def test_a_missing_place_is_an_error(published: dict[str, ModuleType], tmp_path: Path) -> None:
    """A table written nowhere would leave an old one standing."""
    (tmp_path / "README.md").write_text("no place")
    with pytest.raises(ValueError, match="no place <!-- results -->"):
        published["words"].put(tmp_path / "README.md", "results", "text")

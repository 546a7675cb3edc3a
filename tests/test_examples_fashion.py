"""The Fashion-MNIST example: what its texts say of the models is so, and both configs run on files of that format."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.models import import_from_file

EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion_mnist"
PARAMETERS = {"teacher": 390_634, "small_cnn": 29_434, "mlp": 101_770}


def fresh(name: str) -> torch.nn.Module:
    return import_from_file(f"models.py:{name}", EXAMPLE)()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 60 + 20 random images in MNIST's format, in ten classes."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes()
        )
    return tmp_path


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_has_the_size_that_the_texts_say(name: str) -> None:
    """Sizes are what the example is about: a layer changed in passing would leave its tables behind."""
    assert sum(parameter.numel() for parameter in fresh(name).parameters()) == PARAMETERS[name]
    said = f"{PARAMETERS[name]:,}"
    assert said in (EXAMPLE / "README.md").read_text()
    assert said in (EXAMPLE / "models.py").read_text()


def test_the_teachers_memory_format_changes_no_answer() -> None:
    """Weights in another order that were read as if in the usual one would be a teacher of noise."""
    torch.manual_seed(0)
    teacher = fresh("teacher").eval()
    usual = fresh("teacher").to(memory_format=torch.contiguous_format).eval()
    usual.load_state_dict(teacher.state_dict())
    images = torch.rand(3, 1, 28, 28)
    assert teacher[4].weight.is_contiguous(memory_format=torch.channels_last), "else the comment in models.py is wrong"  # pyright: ignore
    assert not usual[4].weight.is_contiguous(memory_format=torch.channels_last)  # pyright: ignore
    torch.testing.assert_close(teacher(images), usual(images))


@pytest.mark.parametrize(("config", "student"), [("config.yaml", "small_cnn"), ("mlp.yaml", "mlp")])
def test_a_config_runs_on_another_folder(config: str, student: str, images: Path, tmp_path: Path) -> None:
    """Whoever has the files elsewhere points data.path to them; a config that only runs on Debian would be found out there."""
    few = ["study.seeds=1", "study.arms=[kd, scratch]", "training.max_steps=1", "teacher.training.max_steps=1"]
    settings: Any = load_config(EXAMPLE / config, [f"data.path={images}", *few])
    record = build_study(settings, EXAMPLE, "test").run(tmp_path / "run")
    assert record["splits"]["test"] == 20
    assert record["cost"]["student"]["parameters"] == PARAMETERS[student]
    assert record["cost"]["teacher"]["parameters"] == PARAMETERS["teacher"]
    assert {gate["name"] for gate in record["verdict"]["gates"]} >= {"size_ratio", "latency_ratio", "gain_over_scratch"}


def test_configs_differ_in_the_student_alone() -> None:
    """Two tables side by side compare students only where teacher, data and objective are the same."""
    small, mlp = (load_config(EXAMPLE / name).resolved() for name in ("config.yaml", "mlp.yaml"))
    for section in ("data", "teacher", "objective", "study"):
        assert small[section] == mlp[section], section
    assert small["training"] | {"learning_rate": 0} == mlp["training"] | {"learning_rate": 0}

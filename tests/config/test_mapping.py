"""``layers: uniform`` and ``last`` become pairs of the two models' blocks when a config becomes a study."""

from pathlib import Path
from typing import Any

import pytest

from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.errors import TutelageError

MODELS = """
import torch
from torch import nn

def deep(layers, width=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), Blocks(width, layers), nn.Linear(width, 10))

class Blocks(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, hidden):
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        return hidden

def flat():
    return nn.Sequential(nn.Flatten(), Last())

class Last(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
"""

CONFIG = """
task: classification
data: {{source: digits, splits: {{validation: 0.15, test: 0.2}}}}
teacher: {teacher}
student: {{model: {{python: models.py:{student}}}}}
objective:
  - {{term: kl, weight: 0.9}}
  - {{term: hint, layers: {layers}, weight: 0.5}}
training: {{num_train_epochs: 1}}
study: {{seeds: 1, arms: [kd, {{two: [{{term: hint, layers: last}}, {{term: cross_entropy}}]}}]}}
"""

TEACHER = "{model: {python: models.py:deep, arguments: {layers: 4}}, training: {num_train_epochs: 1}}"


def built(folder: Path, **changes: str) -> Any:
    given = {"teacher": TEACHER, "student": "deep, arguments: {layers: 2}", "layers": "uniform", **changes}
    (folder / "models.py").write_text(MODELS)
    (folder / "config.yaml").write_text(CONFIG.format(**given))
    return build_study(load_config(folder / "config.yaml", []), folder, "tutelage run")


def pairs(objective: Any) -> list[tuple[str, str]]:
    return [(item["student"], item["teacher"]) for item in objective.describe() if item["term"] == "hint"]


def test_named_maps_become_pairs_of_blocks(tmp_path: Path) -> None:
    """The student's second block would listen to the teacher's second of four, or to a layer that is not there."""
    study = built(tmp_path)
    assert pairs(study.objective) == [("2.blocks.0", "2.blocks.1"), ("2.blocks.1", "2.blocks.3")]
    assert pairs(study.extra_arms["two"]) == [("2.blocks.0", "2.blocks.2"), ("2.blocks.1", "2.blocks.3")]


def test_listed_pairs_stay(tmp_path: Path) -> None:
    """The user's own names are nobody's to change."""
    assert pairs(built(tmp_path, layers="[[2.blocks.1, '3']]").objective) == [("2.blocks.1", "3")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": "flat"}, "student.model: Sequential has no stack of blocks"),
        ({"teacher": TEACHER[:-1] + ", members: 2}"}, "this one is an ensemble, whose mixture has no features"),
        ({"layers": "unifrom"}, "unknown layer map 'unifrom'"),
    ],
)
def test_a_map_that_cannot_be_made(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    """Left as a word it would be refused by a message about Python, or not at all."""
    with pytest.raises(TutelageError, match=said):
        built(tmp_path, **changes)

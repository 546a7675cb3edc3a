"""Distil any PyTorch or Hugging Face model into a smaller one, and prove that the small one is worth shipping."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. They are imported on first use, so that `import tutelage` costs no torch.
_HOMES = {
    "TutelageError": "tutelage.errors",
    "TransferSet": "tutelage.data",
    "split": "tutelage.data",
    "load_model": "tutelage.models",
    "ModuleTeacher": "tutelage.teachers",
    "EnsembleTeacher": "tutelage.teachers",
    "MemoryTeacher": "tutelage.teachers",
    "Term": "tutelage.objectives",
    "Objective": "tutelage.objectives",
    "CrossEntropy": "tutelage.objectives",
    "KL": "tutelage.objectives",
    "Divergence": "tutelage.objectives",
    "LogitMSE": "tutelage.objectives",
    "DKD": "tutelage.objectives",
    "DIST": "tutelage.objectives",
    "DistillationTrainer": "tutelage.training",
    "DistillationArguments": "tutelage.training",
    "Study": "tutelage.studies",
    "write_report": "tutelage.report",
}

__all__ = [
    "DIST",
    "DKD",
    "KL",
    "CrossEntropy",
    "DistillationArguments",
    "DistillationTrainer",
    "Divergence",
    "EnsembleTeacher",
    "LogitMSE",
    "MemoryTeacher",
    "ModuleTeacher",
    "Objective",
    "Study",
    "Term",
    "TransferSet",
    "TutelageError",
    "__version__",
    "load_model",
    "split",
    "write_report",
]

if TYPE_CHECKING:
    from tutelage.data import TransferSet, split
    from tutelage.errors import TutelageError
    from tutelage.models import load_model
    from tutelage.objectives import DIST, DKD, KL, CrossEntropy, Divergence, LogitMSE, Objective, Term
    from tutelage.report import write_report
    from tutelage.studies import Study
    from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher
    from tutelage.training import DistillationArguments, DistillationTrainer


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

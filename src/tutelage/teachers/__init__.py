"""Teachers: views in, signals out. An objective cannot tell which kind it hears."""

from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.memory import FEATURE_BUDGET, MemoryTeacher, why_not_kept
from tutelage.teachers.module import ModuleTeacher, ShowsLayers, Teacher, as_teacher

__all__ = [
    "FEATURE_BUDGET",
    "EnsembleTeacher",
    "MemoryTeacher",
    "ModuleTeacher",
    "ShowsLayers",
    "Teacher",
    "as_teacher",
    "why_not_kept",
]

"""Teachers: views in, signals out. An objective cannot tell which kind it hears."""

from tutelage.teachers.crossing import CrossTokenizerTeacher
from tutelage.teachers.ensemble import EnsembleTeacher
from tutelage.teachers.memory import FEATURE_BUDGET, MemoryTeacher, why_not_kept
from tutelage.teachers.module import ModuleTeacher, ShowsLayers, Teacher, as_teacher
from tutelage.teachers.remote import RemoteTeacher
from tutelage.teachers.stored import ANSWER_BUDGET, StoredTeacher

__all__ = [
    "ANSWER_BUDGET",
    "FEATURE_BUDGET",
    "CrossTokenizerTeacher",
    "EnsembleTeacher",
    "MemoryTeacher",
    "ModuleTeacher",
    "RemoteTeacher",
    "ShowsLayers",
    "StoredTeacher",
    "Teacher",
    "as_teacher",
    "why_not_kept",
]

"""A language model distilled beside its controls."""

from tutelage.studies.language.arms import LanguageArm
from tutelage.studies.language.data import LanguageData, Split
from tutelage.studies.language.gates import LanguageGates
from tutelage.studies.language.generating import Filters, Generation
from tutelage.studies.language.study import LanguageStudy

__all__ = ["Filters", "Generation", "LanguageArm", "LanguageData", "LanguageGates", "LanguageStudy", "Split"]

"""Arms × seeds → records → verdict; a finished run → an artefact → its own verdict."""

from tutelage.studies.arm import Progress, Silent
from tutelage.studies.chain import Assistant, Chain
from tutelage.studies.checking import Price, check_artefact, measure_shipped
from tutelage.studies.faculty import Member, TeacherTraining
from tutelage.studies.finished import FinishedRun, open_run
from tutelage.studies.gates import Gates
from tutelage.studies.generations import BornAgain
from tutelage.studies.judging import judge
from tutelage.studies.labelling import label
from tutelage.studies.language import (
    Filters,
    Generation,
    LanguageArm,
    LanguageData,
    LanguageGates,
    LanguageStudy,
    Split,
)
from tutelage.studies.mutual import Mutual
from tutelage.studies.shipping import export_student
from tutelage.studies.spot_check import spot_check
from tutelage.studies.starting import Arm, FromTeacher, Start, Uncut
from tutelage.studies.stored_labels import Labels
from tutelage.studies.study import Study

__all__ = [
    "Arm",
    "Assistant",
    "BornAgain",
    "Chain",
    "Filters",
    "FinishedRun",
    "FromTeacher",
    "Gates",
    "Generation",
    "Labels",
    "LanguageArm",
    "LanguageData",
    "LanguageGates",
    "LanguageStudy",
    "Member",
    "Mutual",
    "Price",
    "Progress",
    "Silent",
    "Split",
    "Start",
    "Study",
    "TeacherTraining",
    "Uncut",
    "check_artefact",
    "export_student",
    "judge",
    "label",
    "measure_shipped",
    "open_run",
    "spot_check",
]

"""What students may pass before the task: they learn to tell hidden words as a masked language model does, once a seed."""

from tutelage.studies.stage.plan import STAGE, Meeting, StagePlan, StageTeacherTraining, check_stage
from tutelage.studies.stage.recording import stage_record
from tutelage.studies.stage.running import run_stage, staged
from tutelage.studies.stage.texts import StageTexts

__all__ = [
    "STAGE",
    "Meeting",
    "StagePlan",
    "StageTeacherTraining",
    "StageTexts",
    "check_stage",
    "run_stage",
    "stage_record",
    "staged",
]

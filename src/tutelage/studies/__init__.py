"""Arms × seeds → records → verdict."""

from tutelage.studies.arm import Progress, Silent
from tutelage.studies.gates import Gates
from tutelage.studies.judging import judge
from tutelage.studies.study import Study, TeacherTraining

__all__ = ["Gates", "Progress", "Silent", "Study", "TeacherTraining", "judge"]

"""The ``surgery`` of ``result.json``: what was cut, for each way in which students begin with some of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tutelage.data import Splits
from tutelage.evaluation import surgery_table
from tutelage.studies.arm import build_seeded
from tutelage.studies.chain import Walked
from tutelage.studies.setting import Setting
from tutelage.studies.starting import Start
from tutelage.studies.teaching import on_cpu
from tutelage.studies.typical import typical_example
from tutelage.teachers import ModuleTeacher, Teacher

Json = dict[str, Any]


def surgery_record(
    teacher: Teacher, settings: Mapping[str, Setting], starts: Mapping[str, Start], walked: Walked | None
) -> list[Json]:
    """One entry for each way in which students, or assistants, are cut from another model, with those who begin so.

    Args:
        teacher: it.
        settings: of each arm.
        starts: how students begin, of the arms that it is told of; the others' begin as those of the judged one.
        walked: the road by way of assistants, where there are some.
    """
    found: dict[str, Json] = {}
    for arm, start in starts.items():
        if not start.cut:
            continue
        if start.words not in found:
            setting = settings[arm]
            student = build_seeded(setting.student, setting.seeds[0])
            found[start.words] = _entry(start, teacher, student, setting.splits)
        # who has no student of its own begins as the judged one does
        alike = [
            other for other in settings if other not in starts and settings[other].student is settings[arm].student
        ]
        found[start.words]["arms"] += [arm, *alike]
    for link in walked.links if walked is not None else ():
        if link.start is not None and link.start.cut:
            entry = found.setdefault(link.start.words, _entry(link.start, teacher, link.module, link.splits))
            entry["assistants"].append(link.name)
    return list(found.values())


def _entry(start: Start, teacher: Teacher, student: nn.Module, splits: Splits) -> Json:
    alone = typical_example(splits.test)
    if start.whole is not None:
        whole, inputs = start.whole(), alone["student"]
    else:
        assert isinstance(teacher, ModuleTeacher)  # or nothing could have been made of it
        whole, inputs = teacher.model, alone["teacher"]
    with on_cpu(whole), on_cpu(student):
        table = surgery_table(whole, student, inputs, alone["student"])
    return {"start": start.words, "arms": [], "assistants": [], **table}

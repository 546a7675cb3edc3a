"""From a sentence encoder's config to its study."""

from __future__ import annotations

from pathlib import Path

from tutelage.config.embedding.checking import arms_of
from tutelage.config.embedding.models import load_teacher, pupil_of
from tutelage.config.embedding.schema import EmbeddingArmSection, EmbeddingConfig, RetrievalSection
from tutelage.config.embedding.texts import read_texts
from tutelage.config.models import facts_of, naming
from tutelage.objectives import objective_from_config
from tutelage.studies.embedding import EmbeddingArm, EmbeddingGates, EmbeddingStudy
from tutelage.studies.embedding.models import Making


def build_embedding_study(config: EmbeddingConfig, folder: Path, command: str) -> EmbeddingStudy:
    """Read the data, load the teacher and put the study together.

    Args:
        config: the checked config.
        folder: where it lies; relative paths in it are relative to this.
        command: how the run was started, for the record.

    Raises:
        TutelageError: something the config names is not there, or does not fit.
    """
    objective = objective_from_config(config.objective)
    standard, own = arms_of(config)
    data = read_texts(config, folder)
    teacher = load_teacher(config.teacher, folder)
    making = Making(teacher, data.train.texts, config.data.max_length)
    arms = {name: _arm(name, arm, making, folder) for name, arm in own.items()}
    return EmbeddingStudy(
        data=data,
        teacher=teacher,
        student=pupil_of(config.student, making, folder, "student"),
        objective=objective,
        training=config.training,
        seeds=config.study.seeds,
        arms=standard,
        extra_arms=arms,
        max_length=config.data.max_length,
        pairs=config.similarity.pairs,
        ks=(config.retrieval or RetrievalSection()).k,
        gates=EmbeddingGates(**config.gates.model_dump()),
        title=config.title or folder.resolve().name,
        config=config.resolved(),
        fingerprint=facts_of({"data": {}, "teacher": config.resolved()["teacher"]}, folder),
        command=command,
        config_folder=folder,
    )


def _arm(name: str, section: EmbeddingArmSection, making: Making, folder: Path) -> EmbeddingArm:
    where = f"study.arms, {name!r}"
    objective = None
    if section.objective is not None:
        with naming(where):
            objective = objective_from_config(section.objective)
    student = None
    if section.student is not None:
        student = pupil_of(section.student, making, folder, f"{where}, student")
    return EmbeddingArm(objective=objective, student=student)

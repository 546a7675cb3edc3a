"""What a config may say of a stage before the task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config.sections import ModelSection, Section, Seed


class StageDataSection(Section):
    """Texts without labels; ``inputs`` is their column."""

    source: Literal["parquet", "hub", "python"]
    path: str | None = None
    inputs: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    python: str | None = None


class StageTeacherSection(Section):
    """A masked language model; with ``training``, this run trains it on the stage's texts, also where its folder brings no head."""

    model: ModelSection
    training: dict[str, Any] | None = None
    seed: Seed = 0


class MaskingSection(Section):
    """How much of a text is hidden."""

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    whole_words: bool = False


class StageSection(Section):
    """A stage that students pass before the task: they learn to tell hidden words as the stage's teacher does.

    Without ``data`` they learn from the texts of the task's own transfer set; ``validation`` is the share of texts, 1,000 at most, on
    which the stage is measured. Without ``max_length`` texts are as long as the task's.
    """

    data: StageDataSection | None = None
    teacher: StageTeacherSection
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field(
        default_factory=lambda: [{"recipe": "distilbert"}]
    )
    training: dict[str, Any]
    masking: MaskingSection = MaskingSection()
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    max_length: Annotated[int, Field(ge=4)] | None = None
    seed: Seed = 0

"""What a config may say. Every section forbids keys it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping of the config whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """A model: a function in a file beside the config, or a hub id or folder; and weights for it."""

    python: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    hub: str | None = None
    revision: str | None = None
    checkpoint: str | None = None
    allow_pickle: bool = False


class SplitsSection(Section):
    """Fractions of the data; ``test`` is left out where the source brings a test set of its own."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    drop_overlap: bool = False


#: One step of a view: a name alone, or one name with its options.
ViewStep = str | dict[str, Any]


class ViewsSection(Section):
    """What each model sees; the teacher sees what the student sees unless it is said."""

    student: list[ViewStep] = Field(default_factory=list[ViewStep])
    teacher: list[ViewStep] | None = None


class DataSection(Section):
    """The transfer set."""

    source: Literal["digits", "idx", "parquet", "hub", "python"]
    path: str | None = None
    test_path: str | None = None
    inputs: str | list[str] | None = None
    label: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    test_split: str | None = None
    python: str | None = None
    labelled: Annotated[int, Field(ge=0)] | None = None
    seed: int = 0
    splits: SplitsSection = SplitsSection()
    views: ViewsSection = ViewsSection()
    augment: list[ViewStep] = Field(default_factory=list[ViewStep])


class TeacherSection(Section):
    """The teacher; with ``training``, this run trains it on the labelled training split."""

    model: ModelSection
    training: dict[str, Any] | None = None
    seed: int = 0
    allow_masked_classes: bool = False


class StudentSection(Section):
    """The student."""

    model: ModelSection


class RunSection(Section):
    """Arms and seeds. An arm is a standard one by name, or ``{name: [terms]}``."""

    seeds: Annotated[int, Field(ge=1)] | list[int] = 5
    arms: list[str | dict[str, list[dict[str, Any]]]] = Field(
        default_factory=lambda: ["kd", "scratch", "label_smoothing"]
    )
    label_smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1


class GatesSection(Section):
    """Limits the student must meet; null leaves a gate out."""

    accuracy_drop_vs_teacher: float | None = 0.03
    gain_over_scratch: float | None = 0.0
    gain_over_label_smoothing: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    ece: float | None = None
    negative_flips: float | None = None


class StudyConfig(Section):
    """A whole config."""

    title: str | None = None
    task: Literal["classification"] = "classification"
    data: DataSection
    teacher: TeacherSection
    student: StudentSection
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)]
    training: dict[str, Any]
    study: RunSection = RunSection()
    gates: GatesSection = GatesSection()

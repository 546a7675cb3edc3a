"""What a config may say. Every section forbids keys it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config.sections import ModelSection, Section, Seed
from tutelage.config.stage_section import StageSection


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

    source: str
    path: str | None = None
    test_path: str | None = None
    inputs: str | list[str] | None = None
    label: str | None = None
    metadata: Annotated[list[str], Field(min_length=1)] | None = None
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    test_split: str | None = None
    python: str | None = None
    labelled: Annotated[int, Field(ge=0)] | None = None
    omit: Annotated[list[Annotated[int, Field(ge=0)] | str], Field(min_length=1)] | None = None
    label_noise: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Seed = 0
    splits: SplitsSection = SplitsSection()
    views: ViewsSection = ViewsSection()
    augment: list[ViewStep] = Field(default_factory=list[ViewStep])


class MemberSection(Section):
    """One of an ensemble's teachers; with ``training``, this run trains it on the labelled training split."""

    model: ModelSection
    training: dict[str, Any] | None = None
    seed: Seed | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    allow_masked_classes: bool = False


class TeacherSection(Section):
    """The teacher, a ``model`` or an ``ensemble``; with ``training``, this run trains it on the labelled training split.

    ``members`` trains so many of the model, each with a seed of its own, for an ensemble of them. ``classes`` says which of a
    given model's classes are the student's, how many of the first or their numbers in the student's order.
    """

    model: ModelSection | None = None
    training: dict[str, Any] | None = None
    seed: Seed = 0
    members: Annotated[int, Field(ge=2)] | None = None
    ensemble: Annotated[list[MemberSection], Field(min_length=1)] | None = None
    allow_masked_classes: bool = False
    classes: Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = (
        None
    )


#: How many layers, which ones, or in a word: every_other, first or last (with so many: first:3), important:3.
KeptLayers = Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | str

Width = Annotated[int, Field(ge=1)]


class AssistantSection(Section):
    """A model between teacher and student; its training and objective are the student's where it has none of its own."""

    name: str
    model: ModelSection | None = None
    origin: Literal["teacher"] | None = Field(default=None, alias="from")
    layers: KeptLayers | None = None
    hidden: Width | None = None
    heads: Width | None = None
    feed_forward: Width | None = None
    vocabulary: Literal["used"] | None = None
    initial: Literal["teacher", "random"] | None = None
    training: dict[str, Any] | None = None
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    seed: Seed = 0


class StudentSection(Section):
    """The student: a model of its own, or the teacher's (``from: teacher``), whole or cut; ``initial: random`` keeps the shape alone."""

    model: ModelSection | None = None
    origin: Literal["teacher"] | None = Field(default=None, alias="from")
    layers: KeptLayers | None = None
    hidden: Width | None = None
    heads: Width | None = None
    feed_forward: Width | None = None
    vocabulary: Literal["used"] | None = None
    initial: Literal["teacher", "random"] | None = None


class ArmSection(Section):
    """An arm of the user's own: what it says differs from the arm ``kd``."""

    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    student: StudentSection | None = None
    stage: bool | None = None


class RunSection(Section):
    """Arms and seeds. An arm is one by name, ``{name: [terms]}``, ``{name: {objective, student, ...}}``, or a recipe with its options."""

    seeds: Annotated[int, Field(ge=1)] | Annotated[list[Seed], Field(min_length=1)] = 5
    arms: list[str | dict[str, list[dict[str, Any]] | dict[str, Any]]] = Field(
        default_factory=lambda: ["kd", "scratch", "label_smoothing"]
    )
    label_smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1
    path: Literal["all", "best"] | None = None
    together: Literal["auto"] | bool = "auto"


class GatesSection(Section):
    """Limits the student must meet; null leaves a gate out."""

    accuracy_drop_vs_teacher: float | None = 0.03
    gain_over_scratch: float | None = 0.0
    gain_over_label_smoothing: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    ece: float | None = None
    negative_flips: float | None = None
    worst_class_drop: float | None = None
    worst_slice_drop: float | None = None
    negative_flips_vs_baseline: float | None = None


class LabelsSection(Section):
    """Where the teacher's answers are kept, and in what form; without it a run keeps them in memory as they are needed."""

    store: str | None = None
    form: Literal["dense", "sampled", "top_k"] = "dense"
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    draws: Annotated[int, Field(ge=1)] | None = None
    scheme: Literal["systematic", "independent"] | None = None
    k: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    views: Annotated[int, Field(ge=1)] | None = None
    features: Annotated[list[str], Field(min_length=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    spot_check: Annotated[int, Field(ge=0)] = 8


class TieSection(Section):
    """A key that follows another one of the space: 1 minus its value, or the same."""

    one_minus: str | None = None
    same_as: str | None = None


class SearchSection(Section):
    """What ``tutelage sweep`` varies; ``tutelage run`` passes it over."""

    space: Annotated[dict[str, Any], Field(min_length=1)]
    tie: dict[str, TieSection] = Field(default_factory=dict[str, TieSection])
    trials: Annotated[int, Field(ge=1)] | None = None
    seeds: Annotated[int, Field(ge=1)] | Annotated[list[Seed], Field(min_length=1)] = 3
    metric: Literal["accuracy", "nll"] = "accuracy"
    batch: Annotated[int, Field(ge=1)] = 8
    seed: Seed = 0
    storage: str | None = None


class StudyConfig(Section):
    """A whole config."""

    title: str | None = None
    task: Literal["classification"] = "classification"
    data: DataSection
    teacher: TeacherSection
    assistants: Annotated[list[AssistantSection], Field(min_length=1)] | None = None
    student: StudentSection
    labels: LabelsSection | None = None
    stage: StageSection | None = None
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)]
    training: dict[str, Any]
    study: RunSection = RunSection()
    gates: GatesSection = GatesSection()
    search: SearchSection | None = None

    def resolved(self) -> dict[str, Any]:
        """As every section's, but for ``search``: it decides nothing about this configuration's own run."""
        said = super().resolved()
        said.pop("search", None)
        return said

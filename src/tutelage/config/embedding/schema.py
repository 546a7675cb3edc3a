"""What the config of a sentence encoder's study may say. Every section forbids keys it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config.schema import KeptLayers, ModelSection, Section, Seed, Width

Positive = Annotated[int, Field(ge=1)]


class EmbeddingSplitsSection(Section):
    """Fractions of the groups (of the texts, where they have none); ``test`` is left out where the source brings a test set of its own."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    drop_overlap: bool = False


class EmbeddingDataSection(Section):
    """Rows with a text, which of them answer one another, and the task each belongs to."""

    source: str
    path: str | None = None
    test_path: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    test_split: str | None = None
    python: str | None = None
    text: str = "text"
    groups: str | None = None
    tasks: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 128
    limit: Positive | None = None
    seed: Seed = 0
    splits: EmbeddingSplitsSection = EmbeddingSplitsSection()


class EmbeddingTeacherSection(Section):
    """The teacher: a sentence encoder."""

    model: ModelSection
    tokenizer: str | None = None


class StaticSection(Section):
    """A student without layers: the mean of one vector a token, from what the teacher makes of each token alone, or from its inputs."""

    width: Positive | None = None
    tokens: Literal["outputs", "inputs"] = "outputs"


class EmbeddingStudentSection(Section):
    """The student: a model of its own, or the teacher's (``from: teacher``), whole or cut, or a table of its tokens (``static``)."""

    model: ModelSection | None = None
    origin: Literal["teacher"] | None = Field(default=None, alias="from")
    tokenizer: str | None = None
    layers: KeptLayers | None = None
    hidden: Width | None = None
    heads: Width | None = None
    feed_forward: Width | None = None
    vocabulary: Literal["used"] | None = None
    initial: Literal["teacher", "random"] | None = None
    static: StaticSection | None = None


class EmbeddingArmSection(Section):
    """An arm of the user's own: what it says differs from the arm ``kd``; a ``student`` stands for itself."""

    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    student: EmbeddingStudentSection | None = None


class EmbeddingRunSection(Section):
    """Arms and seeds. An arm is one by name, ``{name: {objective: [...], student: {...}}}`` or ``{name: [terms]}``."""

    seeds: Positive | Annotated[list[Seed], Field(min_length=1)] = 3
    arms: list[str | dict[str, Any]] = Field(default_factory=lambda: ["untouched", "kd"])


class SimilaritySection(Section):
    """On how many pairs of test texts the similarities of student and teacher are compared."""

    pairs: Annotated[int, Field(ge=2)] = 5000


class RetrievalSection(Section):
    """After how many texts an answer must have been found."""

    k: Annotated[list[Positive], Field(min_length=1)] = Field(default_factory=lambda: [1, 10])


class EmbeddingGatesSection(Section):
    """Limits the student must meet; null leaves a gate out."""

    spearman: float | None = 0.95
    gain_over_untouched: float | None = 0.0
    recall_drop: float | None = 0.02
    worst_task_drop: float | None = None
    size_ratio: float | None = None
    throughput_ratio: float | None = None


class EmbeddingConfig(Section):
    """A whole config."""

    title: str | None = None
    task: Literal["embedding"]
    data: EmbeddingDataSection
    teacher: EmbeddingTeacherSection
    student: EmbeddingStudentSection
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field(
        default_factory=lambda: [{"term": "embedding_cosine"}]
    )
    training: dict[str, Any]
    study: EmbeddingRunSection = EmbeddingRunSection()
    similarity: SimilaritySection = SimilaritySection()
    retrieval: RetrievalSection | None = None
    gates: EmbeddingGatesSection = EmbeddingGatesSection()

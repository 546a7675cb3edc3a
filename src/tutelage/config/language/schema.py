"""What the config of a language model's study may say. Every section forbids keys it does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config.schema import LabelsSection, ModelSection, Section, Seed

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class LanguageSplitsSection(Section):
    """Fractions of the rows; ``test`` is left out where the source brings a test set of its own."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    by: str | Annotated[list[str], Field(min_length=1)] | None = None
    drop_overlap: bool = False


class LanguageDataSection(Section):
    """Rows with messages, prompts and completions, or plain texts, and how they become tokens."""

    source: str
    path: str | None = None
    test_path: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    test_split: str | None = None
    python: str | None = None
    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"
    completions: Literal["data", "teacher"] = "data"
    turns: Literal["last", "all"] = "last"
    max_length: Annotated[int, Field(ge=2)] = 512
    layout: Literal["padded", "packed"] = "padded"
    drop_long: bool = False
    drop_empty: bool = False
    pack_text: bool = False
    limit: Positive | None = None
    seed: Seed = 0
    splits: LanguageSplitsSection = LanguageSplitsSection()


class ShotSection(Section):
    """A worked example in front of the question."""

    user: str
    assistant: str


class PromptSection(Section):
    """What a model sees of an example before its completion: templates over the row's columns."""

    user: str | None = None
    system: str | None = None
    text: str | None = None
    shots: list[ShotSection] = Field(default_factory=list[ShotSection])
    tools: list[dict[str, Any]] | None = None
    chat: bool | None = None
    template_options: dict[str, Any] = Field(default_factory=dict)


class PromptsSection(Section):
    """Both views; the teacher sees what the student sees unless it has one of its own."""

    student: PromptSection = PromptSection()
    teacher: PromptSection | None = None


class RemoteSection(Section):
    """A teacher behind a server that speaks the OpenAI-compatible API.

    The key is read from the environment variable that ``key_env`` names, never from a config.
    """

    url: str
    model: str
    k: Positive = 20
    classes: Positive | None = None
    key_env: str | None = None
    timeout: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 5


class LanguageMemberSection(Section):
    """One of an ensemble's teachers."""

    model: ModelSection
    weight: Annotated[float, Field(gt=0)] = 1.0


class LanguageTeacherSection(Section):
    """The teacher: a ``model``, a ``remote`` one, an ``ensemble``, or ``self: true``.

    The last is the untouched student itself, which sees the teacher's view.
    """

    model: ModelSection | None = None
    remote: RemoteSection | None = None
    ensemble: Annotated[list[LanguageMemberSection], Field(min_length=1)] | None = None
    itself: bool = Field(default=False, alias="self")
    tokenizer: str | None = None
    alignment: Literal["text", "crossing", "uld"] | None = None


class LoraSection(Section):
    """Adapters that are trained in the place of the student's weights."""

    r: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | Annotated[list[str], Field(min_length=1)] = "all-linear"


class LanguageStudentSection(Section):
    """The student: a model of its own, or the teacher's (``from: teacher``), with all its layers or some, and adapters or none."""

    model: ModelSection | None = None
    origin: Literal["teacher"] | None = Field(default=None, alias="from")
    tokenizer: str | None = None
    layers: Positive | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    lora: LoraSection | None = None


class OnPolicySection(Section):
    """How often, and how, the student writes the completions that the teacher marks."""

    share: Share = 1.0
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


class FiltersSection(Section):
    """Which of the teacher's completions are kept."""

    finished: bool = True
    min_tokens: Positive = 1
    max_tokens: Positive | None = None
    python: str | None = None


class GenerateSection(Section):
    """How the teacher writes completions (``tutelage generate``)."""

    n: Positive = 1
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    greedy: bool = False
    seed: Seed = 0
    batch_size: Positive = 16
    filters: FiltersSection = FiltersSection()
    deduplicate: bool = True


class LanguageArmSection(Section):
    """An arm of the user's own: what it says differs from the arm ``kd``."""

    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    on_policy: OnPolicySection | None = None
    completions: Literal["data", "teacher"] | None = None
    labels: LabelsSection | None = None
    shows: Literal["student", "teacher"] = "student"


class LanguageRunSection(Section):
    """Arms and seeds. An arm is one by name, ``{name: {objective: [...], ...}}`` or ``{name: [terms]}``."""

    seeds: Positive | Annotated[list[Seed], Field(min_length=1)] = 3
    arms: list[str | dict[str, Any]] = Field(default_factory=lambda: ["untouched", "sft", "kd"])
    seconds: Annotated[float, Field(gt=0)] | None = None


class ScoreSection(Section):
    """The task's own score: constrained ``choices``, ``exact_match`` of what was written, or a ``python`` function."""

    choices: Annotated[list[str], Field(min_length=2)] | None = None
    column: str | None = None
    exact_match: str | None = None
    python: str | None = None
    fraction: bool = True
    max_new_tokens: Positive = 64


class SamplesSection(Section):
    """Completions side by side on the page."""

    count: Annotated[int, Field(ge=0)] = 6
    max_new_tokens: Positive = 64


class LanguageGatesSection(Section):
    """Limits the student must meet; null leaves a gate out."""

    score_drop_vs_teacher: float | None = 0.03
    gain_over_sft: float | None = 0.0
    gain_over_untouched: float | None = 0.0
    gap_closed: float | None = None
    kl: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None


class LanguageConfig(Section):
    """A whole config."""

    title: str | None = None
    task: Literal["language_model"]
    data: LanguageDataSection
    views: PromptsSection = PromptsSection()
    teacher: LanguageTeacherSection
    student: LanguageStudentSection
    labels: LabelsSection | None = None
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)]
    on_policy: OnPolicySection | None = None
    generate: GenerateSection | None = None
    training: dict[str, Any]
    study: LanguageRunSection = LanguageRunSection()
    score: ScoreSection | None = None
    samples: SamplesSection = SamplesSection()
    gates: LanguageGatesSection = LanguageGatesSection()

"""What a model says about a batch: the only thing an objective ever sees of a teacher or a student.

Logits are *supervised rows* ``[N, C]``; masks and shifts are resolved once, when rows are gathered, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from tutelage.errors import ConfigError, ObjectiveError, TeacherError

#: The label of an example that has none (PyTorch's own ``ignore_index``).
NO_LABEL = -100
#: The feature of a teacher that shows its probabilities from the largest to the smallest, of whatever vocabulary.
SORTED = "sorted probabilities"


class Rows(TypedDict):
    """What an objective may know of the batch besides the signals.

    ``labels[N]`` are int64 class indices, ``NO_LABEL`` where there is none; ``ids[N]`` int64 content ids, used to name
    examples in errors · ``examples``: how many examples B a layer shows, where that is another number than N: rows are tokens,
    and layers show whole texts.
    """

    labels: Tensor
    ids: Tensor
    examples: NotRequired[int]


def examples_in(rows: Rows) -> int:
    """How many examples a layer shows of a batch: B texts where it shows whole ones, else a row each, N."""
    return rows.get("examples", rows["labels"].shape[0])


@runtime_checkable
class ClassScores(Protocol):
    """Something that has, at each temperature, logits over C classes for N rows."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        ...

    def at(self, temperature: float) -> Tensor:
        """Logits ``[N, C]`` whose softmax *at that temperature* is the distribution: ``softmax(at(T) / T)``."""
        ...


@dataclass(frozen=True)
class Logits:
    """Dense logits.

    Args:
        values: ``[N, C]``, any floating dtype; −inf marks a masked class.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise TeacherError(
                f"logits must be rows [N, C], got shape {tuple(self.values.shape)}: gather the supervised rows first, "
                "or classes and positions would be mixed up"
            )

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.values.shape[1]

    def at(self, temperature: float) -> Tensor:  # noqa: ARG002 - one set of logits serves every temperature
        """The logits ``[N, C]`` themselves, at every temperature."""
        return self.values


@dataclass(frozen=True)
class MixtureLogits:
    """An ensemble's members, mixed as *probabilities* at the temperature that is asked for.

    ``softmax(at(T) / T) = Σ_m weight_m · softmax(z_m / T)``, which no single set of logits gives at every T: the mean of
    the members' logits is the (renormalised) *geometric* mean of their probabilities, another distribution.

    Args:
        members: ``[M, N, C]`` logits of each member.
        weights: ``[M]`` non-negative, summing to 1.
    """

    members: Tensor
    weights: Tensor

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.members.shape[2]

    def at(self, temperature: float) -> Tensor:
        """Effective logits ``[N, C]`` at ``temperature``, in float32 or better.

        In float64 above T = 16, where the probabilities differ by so little that float32 would round the logits away.
        """
        least = torch.float64 if temperature > 16 else torch.float32
        members = self.members.to(torch.promote_types(self.members.dtype, least))
        log_p_MNC = torch.log_softmax(members / temperature, dim=-1)
        log_w_M11 = self.weights.to(members).log()[:, None, None]
        return temperature * torch.logsumexp(log_p_MNC + log_w_M11, dim=0)


@dataclass(frozen=True)
class HeadLogits:
    """A linear head not multiplied out yet, so that a divergence can be computed a block at a time.

    The logits are ``cap(scale · (hidden @ weight.T + bias))`` with ``cap(z) = softcap · tanh(z / softcap)``, or the identity
    without one (Gemma 2 has a softcap, Cohere and Granite a scale). Of the head's rows, ``kept`` says which are classes that
    both models know and in what order; the others (a vocabulary padded for the hardware) have no part in the softmax.

    Args:
        hidden: ``[N, D]`` what the head is given, one row a supervised row.
        weight: ``[R, D]`` the head's weight.
        bias: ``[R]``, or None.
        scale: factor of the product.
        softcap: bound of the logits, > 0; None for none.
        kept: ``n`` for the head's first n rows, or int64 ``[C]`` rows; None for all.

    Raises:
        ObjectiveError: shapes that do not fit together, a softcap that is not positive, kept rows that the head does not have.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    kept: int | Tensor | None = None

    def __post_init__(self) -> None:
        if self.hidden.ndim != 2 or self.weight.ndim != 2 or self.hidden.shape[1] != self.weight.shape[1]:
            raise ObjectiveError(
                f"hidden is {tuple(self.hidden.shape)} and weight {tuple(self.weight.shape)}: expected supervised rows [N, D] and the "
                "head's [classes, D] of the same D; gather the rows first, and give the weight as nn.Linear holds it"
            )
        rows = self.weight.shape[0]
        if self.bias is not None and self.bias.shape != (rows,):
            raise ObjectiveError(
                f"bias is {tuple(self.bias.shape)} for a head of {rows:,} rows: expected one number a row"
            )
        if self.softcap is not None and not self.softcap > 0.0:
            raise ObjectiveError(f"softcap is {self.softcap}: expected a positive bound, or None for none")
        if isinstance(self.kept, int) and not 0 < self.kept <= rows:
            raise ObjectiveError(f"kept is {self.kept:,} for a head of {rows:,} rows: expected 1 to {rows:,}")
        if isinstance(self.kept, Tensor) and (self.kept.ndim != 1 or self.kept.dtype != torch.int64):
            raise ObjectiveError(
                f"kept is {self.kept.dtype} of shape {tuple(self.kept.shape)}: expected int64 rows of the head [C], or a number"
            )

    @property
    def classes(self) -> int:
        """Number of classes C."""
        if self.kept is None:
            return self.weight.shape[0]
        return self.kept if isinstance(self.kept, int) else self.kept.shape[0]

    def at(self, temperature: float) -> Tensor:  # noqa: ARG002 - one set of logits serves every temperature
        """The logits ``[N, C]`` multiplied out, for a term that has to have them all; float32 or better, with gradient."""
        weight, bias = self.weight, self.bias
        if self.kept is not None:
            of = slice(self.kept) if isinstance(self.kept, int) else self.kept
            weight, bias = weight[of], (bias[of] if bias is not None else None)
        dtype = torch.promote_types(torch.promote_types(self.hidden.dtype, weight.dtype), torch.float32)
        with torch.autocast(self.hidden.device.type, enabled=False):
            logits_NC = torch.nn.functional.linear(
                self.hidden.to(dtype), weight.to(dtype), bias.to(dtype) if bias is not None else None
            )
            if self.scale != 1.0:
                logits_NC = logits_NC * self.scale
            return logits_NC if self.softcap is None else self.softcap * torch.tanh(logits_NC / self.softcap)


#: What is known of a distribution of which only some classes are kept.
SparseForm = Literal["sampled", "top_k"]


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's distribution of which only some classes are kept: no logits, and so no scores at another temperature.

    Two honest forms. *sampled*: ``probs`` are an unbiased estimate of the whole distribution (counts of n draws over n, each
    times its importance weight where drawn from another distribution); a class that was not drawn is not improbable.
    *top_k*: ``probs`` are exact for the k most probable classes, and ``1 − Σ probs`` is the mass of all others together.

    Args:
        ids: int64 ``[N, K]`` classes, each once a row; −1 marks a place that is not used.
        probs: ``[N, K]`` float32, ≥ 0; 0 where not used.
        classes: number of classes C.
        temperature: T > 0 at which the distribution was taken.
        form: ``"sampled"`` or ``"top_k"``.
        entropy: ``[N]`` nats of the whole distribution at T, which makes a value of a sampled forward KL out of a
            cross-entropy; None where it is not known (the value then lacks it, the gradient is the same).

    Raises:
        TeacherError: shapes or dtypes that do not fit, a temperature that is not positive.
    """

    ids: Tensor
    probs: Tensor
    classes: int
    temperature: float
    form: SparseForm
    entropy: Tensor | None = None

    def rows(self, of: slice | Tensor) -> SparseTargets:
        """Some of the rows."""
        entropy = None if self.entropy is None else self.entropy[of]
        return replace(self, ids=self.ids[of], probs=self.probs[of], entropy=entropy)

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.probs.shape or self.ids.dtype != torch.int64:
            raise TeacherError(
                f"sparse targets have ids {self.ids.dtype} {tuple(self.ids.shape)} and probs {tuple(self.probs.shape)}: expected int64 "
                "[N, K] and floats of the same shape"
            )
        if self.form not in ("sampled", "top_k"):
            raise TeacherError(f"form is {self.form!r}: expected 'sampled' or 'top_k'")
        if not 0.0 < self.temperature < float("inf"):
            raise TeacherError(f"sparse targets say T = {self.temperature}: expected a positive, finite temperature")
        if self.entropy is not None and self.entropy.shape != self.ids.shape[:1]:
            raise TeacherError(
                f"entropy is {tuple(self.entropy.shape)} for {self.ids.shape[0]} rows: expected one number a row"
            )


#: A model's class scores, however much of them is there.
AnyScores = ClassScores | SparseTargets


def whole(scores: AnyScores, who: str) -> ClassScores:
    """Scores of which every class is there.

    Raises:
        TeacherError: they are sparse; ``who`` begins the message.
    """
    if isinstance(scores, SparseTargets):
        raise TeacherError(
            f"{who} needs the logits of all {scores.classes:,} classes, and the teacher's stored targets keep some of them "
            f"({scores.form}, T = {scores.temperature:g}): what is not kept would be taken for impossible; store dense logits, or ask the "
            "teacher itself"
        )
    return scores


#: Classes of one model: the first n, their numbers in an order, or all.
Chosen = int | Tensor | None


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Which classes of two models are the same ones, and in what order: two vocabularies, of which one is padded.

    Each side names as many of its own classes, ``n`` for its first n or int64 ``[C]`` numbers; None for all. The others have
    no part in its distribution. Labels number what is left, in its order: those of tokens, which are token numbers, have to be
    numbered anew where the student's are not its first n.

    Args:
        student: the student's.
        teacher: the teacher's.

    Raises:
        ConfigError: no number and no int64 numbers, none at all, or one twice.
    """

    student: Chosen = None
    teacher: Chosen = None

    def __post_init__(self) -> None:
        for side in ("student", "teacher"):
            check_chosen(getattr(self, side), f"class_map, {side}")

    def of_student(self, scores: AnyScores) -> AnyScores:
        """The student's scores of the shared classes. Raises ConfigError for classes that it does not have."""
        return chosen_classes(scores, self.student, "the student")

    def of_teacher(self, scores: AnyScores) -> AnyScores:
        """The teacher's scores of the shared classes. Raises ConfigError for classes that it does not have."""
        return chosen_classes(scores, self.teacher, "the teacher")

    def describe(self) -> list[int | list[int] | None]:
        """Both sides as plain JSON values."""
        return [each.tolist() if isinstance(each, Tensor) else each for each in (self.student, self.teacher)]


def check_chosen(chosen: object, where: str) -> None:
    """Raise ConfigError unless these name classes: a number above 0, int64 numbers ``[C]``, each once, or None."""
    if chosen is None or (isinstance(chosen, int) and not isinstance(chosen, bool) and chosen > 0):
        return
    got = repr(chosen)
    if isinstance(chosen, Tensor):
        numbers = chosen.dtype == torch.int64 and chosen.ndim == 1 and len(chosen) > 0
        if numbers and int(chosen.min()) >= 0 and len(chosen.unique()) == len(chosen):
            return
        got = f"{chosen.dtype} {tuple(chosen.shape)}"
    raise ConfigError(
        f"{where} is {got}: expected how many of the first classes, at least 1, or int64 numbers of classes [C], each once and at "
        "least 0"
    )


def chosen_classes(scores: AnyScores, chosen: Chosen, who: str) -> AnyScores:
    """Scores of some of a model's classes, in the order given.

    Raises:
        ConfigError: classes that it does not have; sparse targets, of which none can be taken away: the mass of what was kept
            and of what was not would no longer be that of one distribution.
    """
    if chosen is None or (isinstance(chosen, int) and chosen == scores.classes):
        return scores
    largest = chosen if isinstance(chosen, int) else int(chosen.max()) + 1
    if largest > scores.classes:
        raise ConfigError(
            f"{who} has {scores.classes:,} classes, and the class map names number {largest - 1:,}: name classes from 0 to "
            f"{scores.classes - 1:,}"
        )
    if isinstance(scores, SparseTargets):
        raise ConfigError(
            f"the class map names {chosen if isinstance(chosen, int) else len(chosen):,} of {who}'s {scores.classes:,} classes, and its "
            f"targets are stored without the others ({scores.form}): the mass of one distribution cannot be divided anew; map the "
            "classes before storing them (teacher.classes, or ModuleTeacher(model, classes=…))"
        )
    if isinstance(scores, HeadLogits):
        return replace(scores, kept=chosen if scores.kept is None else _of_kept(scores.kept, chosen))
    values = scores.members if isinstance(scores, MixtureLogits) else scores.at(1.0)
    values = values[..., :chosen] if isinstance(chosen, int) else values.index_select(-1, chosen.to(values.device))
    return replace(scores, members=values) if isinstance(scores, MixtureLogits) else Logits(values)


def _of_kept(kept: int | Tensor, chosen: int | Tensor) -> int | Tensor:
    if isinstance(kept, int):
        return chosen
    return kept[:chosen] if isinstance(chosen, int) else kept[chosen.to(kept.device)]


@dataclass(frozen=True)
class Signals:
    """Everything one model says about one batch.

    Args:
        logits: class scores for the N supervised rows (sparse ones of a teacher alone), or None for a model that gives features alone.
        features: what inner layers gave, ``[B, ...]``, by the layer's name; ``[N, ...]`` of prompts and completions, a row a token.
        mask: ``[B, T]`` truth values, True at the real tokens of features that show tokens; None where all are real.

    Raises:
        ObjectiveError: a mask that is no truth values ``[B, T]``.
    """

    logits: AnyScores | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and (self.mask.dtype != torch.bool or self.mask.ndim != 2):
            raise ObjectiveError(
                f"mask is {self.mask.dtype} of shape {list(self.mask.shape)}: expected truth values [B, T], True at real tokens, or "
                "padding would be taken for words; give attention_mask.bool()"
            )

    @property
    def provides(self) -> frozenset[str]:
        """The names a term may need: ``logits``, and ``features["NAME"]`` for each layer."""
        named = {f'features["{name}"]' for name in self.features}
        return frozenset(named | ({"logits"} if self.logits is not None else set()))


Side = Literal["student", "teacher"]


def feature_need(side: Side, layer: str) -> str:
    """The name of one side's feature among a term's needs: ``teacher.features["layers.3"]``."""
    return f'{side}.features["{layer}"]'


def layers_needed(needs: Iterable[str], side: Side) -> list[str]:
    """The layers of one side that some need names, sorted."""
    prefix = f'{side}.features["'
    return sorted(need[len(prefix) : -2] for need in needs if need.startswith(prefix))

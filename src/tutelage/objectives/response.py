"""Terms on the logits: hard labels, the divergences, and the logits' own regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import ConfigError, ObjectiveError
from tutelage.objectives.definitions import DEFINITIONS
from tutelage.objectives.divergence import check_classes, check_temperature, row_divergence, working_dtype
from tutelage.objectives.head import head_losses
from tutelage.objectives.objective import Term
from tutelage.objectives.row_loss import RowLoss, check_labels
from tutelage.objectives.schedules import Constant, Schedule, as_schedule, nearest
from tutelage.objectives.sparse import row_sparse
from tutelage.signals import NO_LABEL, ClassScores, HeadLogits, Rows, Signals, SparseTargets, whole

SOFT_NEEDS = frozenset({"student.logits", "teacher.logits"})


@dataclass(frozen=True)
class CrossEntropy(Term):
    """Cross-entropy with the hard labels, at T = 1, over the rows that have one.

    The minimum is 0 without smoothing, else the entropy of the smoothed label. Szegedy et al. 2016, §7: the label gets
    1 − ε, and ε is shared among all classes. Where the student masks classes (logit −inf) ε is shared among the others:
    shared among all, the loss would be infinite. A label that the student itself masks is left at +inf, which the trainer
    refuses: no training could meet it.

    Args:
        label_smoothing: ε in [0, 1).
    """

    label_smoothing: float = 0.0

    name = "cross_entropy"
    needs = frozenset({"student.logits", "labels"})
    additive = True

    def __post_init__(self) -> None:
        set_number(self, "label_smoothing")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ObjectiveError(
                f"label_smoothing={self.label_smoothing}: expected 0 ≤ ε < 1; at 1 the labels would say nothing"
            )

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,  # noqa: ARG002 - every term's signature
        rows: Rows,
        progress: float = 0.0,  # noqa: ARG002 - every term's signature
    ) -> tuple[Tensor, Tensor]:
        """(sum over labelled rows in nats, their number). Raises ObjectiveError for a label outside the classes."""
        if isinstance(student.logits, HeadLogits):
            total, _ = head_losses(student.logits, None, [self.row_loss()], [1.0], labels=rows["labels"])
            return total, self.count(rows)
        logits_NC, labels_N = logits_of(student, "student", self.name).at(1.0), rows["labels"]
        if logits_NC.dtype in (torch.float16, torch.bfloat16):
            logits_NC = logits_NC.float()
        try:
            if self.label_smoothing == 0.0:
                total = F.cross_entropy(logits_NC, labels_N, ignore_index=NO_LABEL, reduction="sum")
            else:
                total = self._smoothed(logits_NC, labels_N)
        except (IndexError, RuntimeError, ValueError):
            # torch names neither the label nor the classes
            check_labels(labels_N, logits_NC.shape[1])
            raise
        return total, self.count(rows)

    def row_loss(self, progress: float = 0.0) -> RowLoss:  # noqa: ARG002 - the same throughout
        return RowLoss(None, label_smoothing=self.label_smoothing)

    def _smoothed(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        log_p_NC = torch.log_softmax(logits_NC, dim=-1)
        hard = F.nll_loss(log_p_NC, labels_N, ignore_index=NO_LABEL, reduction="sum")
        masked_NC = log_p_NC == -torch.inf
        kept_N = masked_NC.shape[1] - masked_NC.sum(-1)
        uniform_N = log_p_NC.masked_fill(masked_NC, 0.0).sum(-1) / kept_N
        uniform = torch.where(labels_N != NO_LABEL, uniform_N, 0.0).sum()
        return (1.0 - self.label_smoothing) * hard - self.label_smoothing * uniform

    def describe(self) -> dict[str, Any]:
        """``{"term": "cross_entropy", "label_smoothing": ε}``."""
        return describe_fields(self)


@dataclass(frozen=True)
class KL(Term):
    """KL divergence from the teacher, Hinton's soft target: ``forward`` KL(q‖p) or ``reverse`` KL(p‖q).

    See :func:`tutelage.objectives.divergence.forward_kl` and ``reverse_kl``.

    Args:
        temperature: T > 0, or a schedule. An ensemble is mixed at T.
        direction: ``"forward"`` covers the teacher's modes, ``"reverse"`` seeks one.
        scale_by_t2: multiply by T², so that the balance with other terms does not move when T does (Hinton 2015, §2).
        standardise: z-score each row of logits first, see :func:`standardised`; an ensemble is then mixed at T = 1.
    """

    temperature: float | Schedule = 1.0
    direction: Literal["forward", "reverse"] = "forward"
    scale_by_t2: bool = True
    standardise: bool = False

    name = "kl"
    needs = SOFT_NEEDS
    additive = True

    def __post_init__(self) -> None:
        set_temperature(self)
        check_flags(self, "scale_by_t2", "standardise")
        if self.direction not in ("forward", "reverse"):
            raise ObjectiveError(
                f"direction {self.direction!r}{nearest(str(self.direction), ('forward', 'reverse'))}: expected 'forward', "
                "KL(teacher‖student), or 'reverse', KL(student‖teacher); they have different minima for a small student"
            )

    def __call__(
        self, student: Signals, teacher: Signals | None, rows: Rows, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(sum over all rows in nats, times T² by default; the number of rows)."""
        return _soft_sum(self, f"{self.direction}_kl", {}, student, teacher, progress), self.count(rows)

    def row_loss(self, progress: float = 0.0) -> RowLoss | None:
        return _row_loss(self, f"{self.direction}_kl", {}, progress)

    def describe(self) -> dict[str, Any]:
        """``{"term": "kl", "temperature": T, …}``."""
        return describe_fields(self)


@dataclass(frozen=True, init=False, repr=False)
class Divergence(Term):
    """Any of the seven divergences by name, e.g. ``Divergence("jensen_shannon", temperature=2, beta=0.1)``.

    Args:
        name: ``forward_kl``, ``reverse_kl``, ``jensen_shannon``, ``skew_forward_kl``, ``skew_reverse_kl``,
            ``total_variation`` or ``alpha_beta``, each a function of :mod:`tutelage.objectives.divergence`.
        temperature: T > 0, or a schedule. An ensemble is mixed at T.
        scale_by_t2: multiply by T².
        standardise: z-score each row of logits first, see :func:`standardised`; an ensemble is then mixed at T = 1.
        params: the divergence's own (``beta``; ``alpha``).

    Raises:
        ObjectiveError: an unknown name or parameter, or one outside its domain.
    """

    name: str
    temperature: float | Schedule
    scale_by_t2: bool
    standardise: bool
    params: tuple[tuple[str, float], ...]

    needs = SOFT_NEEDS
    additive = True

    def __init__(
        self,
        name: str,
        temperature: float | Schedule = 1.0,
        scale_by_t2: bool = True,
        standardise: bool = False,
        **params: float,
    ) -> None:
        if name not in DEFINITIONS:
            raise ObjectiveError(
                f"unknown divergence {name!r}{nearest(str(name), DEFINITIONS)}: one of {', '.join(DEFINITIONS)}"
            )
        known = DEFINITIONS[name].parameters
        for key, value in params.items():
            if key not in known:
                takes = ", ".join(known) or "none of its own"
                raise ObjectiveError(f"{name} has no parameter {key!r}{nearest(key, known)}: it takes {takes}")
            params[key] = _number(value, key)
        full = {**known, **params}
        DEFINITIONS[name].check(full)
        values = {"name": name, "temperature": temperature, "scale_by_t2": scale_by_t2, "standardise": standardise}
        for key, value in {**values, "params": tuple(full.items())}.items():
            object.__setattr__(self, key, value)
        set_temperature(self)
        check_flags(self, "scale_by_t2", "standardise")

    def __repr__(self) -> str:
        fields = {"temperature": self.temperature, "scale_by_t2": self.scale_by_t2, "standardise": self.standardise}
        options = ", ".join(f"{key}={value!r}" for key, value in {**fields, **dict(self.params)}.items())
        return f"Divergence({self.name!r}, {options})"

    def __call__(
        self, student: Signals, teacher: Signals | None, rows: Rows, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(sum over all rows in nats, times T² by default; the number of rows)."""
        return _soft_sum(self, self.name, dict(self.params), student, teacher, progress), self.count(rows)

    def row_loss(self, progress: float = 0.0) -> RowLoss | None:
        return _row_loss(self, self.name, dict(self.params), progress)

    def describe(self) -> dict[str, Any]:
        """``{"term": the divergence's name, "temperature": T, …}``."""
        described = describe_fields(self)
        del described["name"], described["params"]
        return described | dict(self.params)


@dataclass(frozen=True)
class LogitMSE(Term):
    """Mean over classes of the squared difference of the logits, per row; in squared logits, not nats.

    Ba & Caruana 2014 and Kim et al. 2021, which sum over the classes: this is theirs over C. Centred, each row's
    mean difference, which no softmax can see, is taken off first; T² times the forward KL tends to half of the centred
    one as T → ∞ (Hinton 2015, §2.1). Classes that the student or the teacher masks (logit −inf) have no logit to compare
    and are left out of the mean. An ensemble is mixed at T = 1.

    Args:
        centred: take each row's mean difference off first.
    """

    centred: bool = False

    name = "logit_mse"
    needs = SOFT_NEEDS
    additive = True

    def __post_init__(self) -> None:
        check_flags(self, "centred")

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,
        rows: Rows,
        progress: float = 0.0,  # noqa: ARG002 - every term's signature
    ) -> tuple[Tensor, Tensor]:
        """(sum over all rows of the mean squared difference, the number of rows)."""
        student_NC, teacher_NC = logit_pair(self, student, teacher, 1.0)
        dtype, _ = working_dtype(1.0, student_NC.dtype, teacher_NC.dtype)
        student_NC, teacher_NC = student_NC.to(dtype), teacher_NC.to(dtype)
        masked_NC = (student_NC == -torch.inf) | (teacher_NC == -torch.inf)
        kept_N1 = masked_NC.shape[1] - masked_NC.sum(-1, keepdim=True)
        difference_NC = (student_NC - teacher_NC).masked_fill(masked_NC, 0.0)
        if self.centred:
            mean_N1 = difference_NC.sum(-1, keepdim=True) / kept_N1
            difference_NC = (difference_NC - mean_N1).masked_fill(masked_NC, 0.0)
        return (difference_NC.square() / kept_N1).sum(), self.count(rows)

    def describe(self) -> dict[str, Any]:
        """``{"term": "logit_mse", "centred": …}``."""
        return describe_fields(self)


def standardised(logits_NC: Tensor) -> Tensor:
    """Each row's z-scores: (z − mean) / standard deviation over its classes. Sun et al. 2024, algorithm 1.

    The student is then free to have its own mean and spread. Temperature divides afterwards, so T is in units of the
    row's spread (the paper's base temperature), and T² multiplies as without. The deviation is the population's. Masked
    classes (−inf, or the dtype's lowest number) are left out of the statistics and stay −inf; a constant row becomes
    zeros, its gradient that of the centring alone (a division by its deviation would be one by 0).

    Args:
        logits_NC: ``[N, C]``.

    Returns:
        ``[N, C]`` in float32 or better.
    """
    masked_NC = logits_NC <= torch.finfo(logits_NC.dtype).min
    logits_NC = logits_NC.to(torch.promote_types(logits_NC.dtype, torch.float32)).masked_fill(masked_NC, 0.0)
    kept_N1 = masked_NC.shape[1] - masked_NC.sum(-1, keepdim=True)
    mean_N1 = logits_NC.sum(-1, keepdim=True) / kept_N1
    centred_NC = (logits_NC - mean_N1).masked_fill(masked_NC, 0.0)
    variance_N1 = centred_NC.square().sum(-1, keepdim=True) / kept_N1
    # rounding of the mean leaves a spread of about this in a constant row
    noise_N1 = (4 * torch.finfo(logits_NC.dtype).eps * mean_N1.detach()).square()
    deviation_N1 = torch.where(variance_N1 <= noise_N1, 1.0, variance_N1).sqrt()
    return (centred_NC / deviation_N1).masked_fill(masked_NC, -torch.inf)


def logits_of(signals: Signals | None, whose: str, term: str) -> ClassScores:
    """The class scores of one side, or an ObjectiveError that names the term."""
    if signals is None or signals.logits is None:
        raise ObjectiveError(
            f"the term {term!r} needs {whose}.logits, and there are none: give a {whose} that returns class logits, or "
            "leave the term out"
        )
    return whole(signals.logits, f"the term {term!r}")


def logit_pair(term: Term, student: Signals, teacher: Signals | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits ``[N, C]`` at ``temperature``; the teacher's without gradient."""
    mine, theirs = logits_of(student, "student", term.name), logits_of(teacher, "teacher", term.name)
    check_classes(theirs.classes, mine.classes)
    return mine.at(temperature), theirs.at(temperature).detach()


def _row_loss(term: KL | Divergence, divergence: str, params: Mapping[str, float], progress: float) -> RowLoss | None:
    # a z-score needs the whole row before any of it has a probability
    return None if term.standardise else _asked(term, divergence, params, progress)


def _asked(term: KL | Divergence, divergence: str, params: Mapping[str, float], progress: float) -> RowLoss:
    temperature = value_at(term.temperature, progress)
    return RowLoss(divergence, temperature, params, temperature * temperature if term.scale_by_t2 else 1.0)


def _soft_sum(
    term: KL | Divergence,
    divergence: str,
    params: Mapping[str, float],
    student: Signals,
    teacher: Signals | None,
    progress: float,
) -> Tensor:
    asked = _asked(term, divergence, params, progress)
    temperature, scale = asked.temperature, asked.scale
    said = teacher.logits if teacher is not None else None
    if isinstance(student.logits, HeadLogits) and not term.standardise:
        return head_losses(student.logits, said, [asked], [1.0])[0]
    if isinstance(said, SparseTargets) and not term.standardise:
        mine = logits_of(student, "student", term.name).at(temperature)
        return row_sparse(divergence, mine, said, temperature, params, scale).sum()
    student_NC, teacher_NC = logit_pair(term, student, teacher, 1.0 if term.standardise else temperature)
    if term.standardise:
        student_NC, teacher_NC = standardised(student_NC), standardised(teacher_NC)
    return row_divergence(divergence, student_NC, teacher_NC, temperature, params, scale=scale, summed=True)


def value_at(value: float | Schedule, progress: float) -> float:
    """The number, or the schedule's at ``progress``."""
    return value if isinstance(value, float) else value(progress)  # pyright: ignore[reportCallIssue]


def set_temperature(term: Any) -> None:
    """Make ``term.temperature`` a float or a schedule; raise ObjectiveError unless it is positive and finite throughout."""
    try:
        schedule = as_schedule(term.temperature)
    except ConfigError as error:
        raise ObjectiveError(f"temperature of {term.name!r}: {error}") from error
    for extreme in schedule.extremes():
        check_temperature(extreme)
    object.__setattr__(term, "temperature", schedule.value if isinstance(schedule, Constant) else schedule)


def set_number(term: Any, name: str) -> None:
    """Make the field a float; raise ObjectiveError unless it is a finite number."""
    object.__setattr__(term, name, _number(getattr(term, name), f"{term.name}'s {name}"))


def check_flags(term: Any, *names: str) -> None:
    """Raise ObjectiveError unless the fields are booleans: the text "false" would be taken for true."""
    for name in names:
        if not isinstance(getattr(term, name), bool):
            raise ObjectiveError(f"{term.name}'s {name} is {getattr(term, name)!r}: expected true or false")


def describe_fields(term: Any) -> dict[str, Any]:
    """``{"term": name}`` and the dataclass's fields, schedules in a config's form."""
    values = {field.name: getattr(term, field.name) for field in dataclasses.fields(term)}
    plain = {key: value.describe() if isinstance(value, Schedule) else value for key, value in values.items()}
    return {"term": term.name, **plain}


def _number(value: Any, what: str) -> float:
    try:
        schedule = as_schedule(value)
    except ConfigError as error:
        raise ObjectiveError(f"{what}: {error}") from error
    if not isinstance(schedule, Constant):
        raise ObjectiveError(f"{what} is {value!r}: only weights and temperatures may follow a schedule; give a number")
    return schedule.value

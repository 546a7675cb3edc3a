"""Terms, and their weighted sum: ``0.1 * CrossEntropy() + 0.9 * KL(temperature=4)``.

A term gives a sum over rows and the number of rows it holds for; an objective divides once, by counts that may span
accumulated batches and processes. Hard terms count labelled rows and soft terms all rows, so that neither is diluted.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tutelage.errors import ConfigError, ObjectiveError
from tutelage.objectives.divergence import check_classes
from tutelage.objectives.head import head_losses
from tutelage.objectives.row_loss import RowLoss, check_labels
from tutelage.objectives.schedules import Constant, Schedule, as_schedule
from tutelage.signals import NO_LABEL, HeadLogits, Rows, Signals, examples_in

_REMEDY = {
    "student.logits": "give the student a head that returns class logits",
    "teacher.logits": "give a teacher that returns class logits, or leave the term out",
    "labels": f"give rows['labels'] ({NO_LABEL} where an example has none), or leave the term out",
}
_REMEDY_FOR_FEATURES = (
    "give a model that has such a layer, and a teacher that shows its layers (a module; kept answers only where the "
    "features were kept too), or leave the term out"
)


class _Algebra(ABC):
    """Sums and multiples, the same for a term and an objective."""

    @abstractmethod
    def parts(self) -> tuple[tuple[Schedule, Term], ...]:
        """The weighted terms that make it up."""

    def __mul__(self, weight: float | Schedule) -> Objective:
        # a Mapping is a config's spelling of a schedule, not a factor
        if not isinstance(weight, (Real, Schedule)):
            return NotImplemented
        try:
            factor = as_schedule(weight)
        except ConfigError as error:
            raise ObjectiveError(f"weight of {self!r}: {error}") from error
        return Objective.of((_product(factor, own), term) for own, term in self.parts())

    __rmul__ = __mul__

    def __add__(self, other: Term | Objective) -> Objective:
        if not isinstance(other, _Algebra):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return Objective.of((*self.parts(), *other.parts()))

    def __radd__(self, other: int) -> Objective:
        # sum() starts from 0
        return Objective.of(self.parts()) if other == 0 else NotImplemented


def _product(a: Schedule, b: Schedule) -> Schedule:
    if isinstance(a, Constant):
        return b.scaled(a.value)
    if isinstance(b, Constant):
        return a.scaled(b.value)
    raise ObjectiveError(
        f"a schedule times a schedule ({a!r} · {b!r}) is none of the known shapes: write the product as one Piecewise"
    )


class Term(_Algebra):
    """One loss: a sum over rows, and how many rows it counts.

    Final terms are frozen dataclasses; ``name`` is the word of configs and logs, ``needs`` the signals it reads, from
    ``student.logits``, ``teacher.logits``, ``labels`` and layers' features (:func:`tutelage.signals.feature_need`).
    """

    name: str
    needs: frozenset[str]
    #: Whether the sum over a batch is the sum over its rows alone, so that batches may be joined or cut without changing it.
    additive: ClassVar[bool] = False

    @property
    def weights(self) -> nn.Module | None:
        """What the term itself has to learn (a projector), trained with the student and never exported; None for most."""
        return None

    def fitted(self, student: Signals, teacher: Signals | None) -> Term:  # noqa: ARG002 - most terms fit as they are
        """The term with weights made for signals of these shapes, initialised from torch's generator.

        Raises:
            ObjectiveError: shapes that cannot meet.
        """
        return self

    def adjustments(self) -> str | None:
        """In words, what :meth:`fitted` put between the two sides (a projector, a pooling); None for nothing."""
        return None

    def row_loss(self, progress: float = 0.0) -> RowLoss | None:  # noqa: ARG002 - most terms are none
        """What the term is where each row's logits alone decide that row's loss, so that a head need not be multiplied out."""
        return None

    def parts(self) -> tuple[tuple[Schedule, Term], ...]:
        return ((Constant(1.0), self),)

    def count(self, rows: Rows) -> Tensor:
        """How many rows the sum is over, 0-dim int64: those with a label for a term that needs labels, else all.

        A term that reads layers alone counts the examples that they show (:func:`tutelage.signals.examples_in`).
        """
        labels_N = rows["labels"]
        if "labels" in self.needs:
            return (labels_N != NO_LABEL).count_nonzero()
        of_layers = self.needs and not self.needs & {"student.logits", "teacher.logits"}
        return labels_N.new_full((), examples_in(rows) if of_layers else labels_N.shape[0], dtype=torch.int64)

    @abstractmethod
    def __call__(
        self, student: Signals, teacher: Signals | None, rows: Rows, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(sum over rows, count), both 0-dim; the sum in nats unless the term says otherwise, with a gradient.

        Raises:
            ObjectiveError: a signal that the term needs is not there.
            TeacherError: teacher and student with other classes or rows.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The term as a config's item without its weight: ``{"term": name, …}``, plain JSON values."""


@dataclass(frozen=True)
class Component:
    """A term with its weight in an objective, and its unique name there (``kl``, then ``kl_2``).

    Raises:
        ObjectiveError: a weight that is negative or not finite at some point of training.
    """

    name: str
    weight: Schedule
    term: Term

    def __post_init__(self) -> None:
        lowest, highest = self.weight.extremes()
        if not (lowest >= 0.0 and highest < float("inf")):
            raise ObjectiveError(
                f"the weight of {self.name!r} runs from {lowest} to {highest}: expected finite weights of at least 0; "
                "a negative one would drive the student away from its target"
            )


@dataclass(frozen=True)
class ObjectiveValue:
    """What an objective says of one batch.

    Args:
        total: 0-dim, with a gradient: what to minimise.
        components: unweighted mean of each component, detached, by the component's name: what to log.
    """

    total: Tensor
    components: dict[str, Tensor]


@dataclass(frozen=True)
class Objective(_Algebra):
    """A weighted sum of terms, made by arithmetic: ``0.1 * CrossEntropy() + 0.9 * KL(temperature=4)``."""

    components: tuple[Component, ...]

    @classmethod
    def of(cls, parts: Iterable[tuple[Schedule, Term]]) -> Objective:
        """The objective of weighted terms; a name that comes again gets a number.

        Raises:
            ObjectiveError: a term of the user's own without ``name`` or ``needs``, or a weight that is no weight.
        """
        seen: dict[str, int] = {}
        components: list[Component] = []
        for weight, term in parts:
            _check_declared(term)
            seen[term.name] = seen.get(term.name, 0) + 1
            name = term.name if seen[term.name] == 1 else f"{term.name}_{seen[term.name]}"
            components.append(Component(name, weight, term))
        return cls(tuple(components))

    def parts(self) -> tuple[tuple[Schedule, Term], ...]:
        return tuple((component.weight, component.term) for component in self.components)

    @property
    def needs(self) -> frozenset[str]:
        """Every signal that some term reads."""
        return frozenset[str]().union(*(component.term.needs for component in self.components))

    @property
    def weights(self) -> nn.ModuleDict:
        """The terms' own weights by the component's name; empty for most objectives."""
        found = {component.name: component.term.weights for component in self.components}
        return nn.ModuleDict({name: module for name, module in found.items() if module is not None})

    def fitted(self, student: Signals, teacher: Signals | None, seed: int) -> Objective:
        """The objective with every term's weights made for signals of these shapes, from ``seed`` alone.

        Raises:
            ObjectiveError: shapes that cannot meet.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [(weight, term.fitted(student, teacher)) for weight, term in self.parts()]
        return Objective.of(parts)

    def counts(self, rows: Rows) -> Tensor:
        """``[len(components)]`` int64: the rows each component counts, to be summed over batches and processes."""
        return torch.stack([component.term.count(rows) for component in self.components])

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,
        rows: Rows,
        *,
        progress: float = 0.0,
        counts: Tensor | None = None,
    ) -> ObjectiveValue:
        """Σ_k weight_k(progress) · sum_k / max(count_k, 1).

        Args:
            student: the student's signals.
            teacher: the teacher's; None where no term needs one.
            rows: labels and ids.
            progress: fraction of the training that is done.
            counts: ``[len(components)]``, the global counts to divide by; this batch's own where None. With them, the
                totals of accumulated batches add up to that of the one big batch.
        """
        if isinstance(student.logits, HeadLogits):
            counts_K = self.counts(rows) if counts is None else counts
            return self._on_head(student.logits, (student, teacher), rows, progress, counts_K)
        return self._one_by_one(student, teacher, rows, progress, counts)

    def _one_by_one(
        self, student: Signals, teacher: Signals | None, rows: Rows, progress: float, counts: Tensor | None
    ) -> ObjectiveValue:
        weights = tuple(component.weight(progress) for component in self.components)
        sums: list[Tensor] = []
        own: list[Tensor] = []
        for component, weight in zip(self.components, weights, strict=True):
            if weight > 0.0:
                total, count = component.term(student, teacher, rows, progress)
            else:
                # it weighs nothing now: computed for the log alone
                with torch.no_grad():
                    total, count = component.term(student, teacher, rows, progress)
            sums.append(total)
            own.append(count)
        sums_K = torch.stack(sums)
        counts_K = (torch.stack(own) if counts is None else counts).clamp_min(1)
        means = (sums_K.detach() / counts_K).unbind()
        components = {component.name: mean for component, mean in zip(self.components, means, strict=True)}
        return ObjectiveValue(_total(sums, sums_K, weights, counts_K), components)

    def _on_head(
        self, head: HeadLogits, signals: tuple[Signals, Signals | None], rows: Rows, progress: float, counts_K: Tensor
    ) -> ObjectiveValue:
        """As a call: what each row's logits decide in one pass over the head, and the other terms beside it."""
        said = signals[1].logits if signals[1] is not None else None
        asked = {k: component.term.row_loss(progress) for k, component in enumerate(self.components)}
        losses = {k: loss for k, loss in asked.items() if loss is not None}
        others = [k for k in asked if k not in losses]
        counts = counts_K.clamp_min(1).tolist()
        parts: list[Tensor] = []
        means: dict[str, Tensor] = {}
        if losses:
            factors = [self.components[k].weight(progress) / counts[k] for k in losses]
            total, sums = head_losses(head, said, list(losses.values()), factors, labels=rows["labels"])
            parts.append(total)
            means = {self.components[k].name: sums[place] / counts[k] for place, k in enumerate(losses)}
        if others:
            rest = Objective(tuple(self.components[k] for k in others))
            outcome = rest._one_by_one(*signals, rows, progress, counts_K[others])
            parts.append(outcome.total)
            means |= outcome.components
        return ObjectiveValue(sum(parts[1:], start=parts[0]), {c.name: means[c.name] for c in self.components})

    def validate(self) -> None:
        """Raise ObjectiveError for an objective that could never teach: no terms, or weights that are always zero."""
        if not any(component.weight.extremes()[1] > 0.0 for component in self.components):
            raise ObjectiveError(
                f"all weights are zero over the whole of training ({', '.join(c.name for c in self.components) or 'no terms'}): "
                "the student would stay as it is; give at least one term a positive weight"
            )

    def check(self, student: Signals, teacher: Signals | None, rows: Rows) -> None:
        """What can be known before the first step; call it once, with the first batch.

        Raises:
            ObjectiveError: a need that nobody provides, labels of another shape or type, or a label outside the classes.
            TeacherError: teacher and student with other classes.
        """
        self.validate()
        provided = {f"student.{name}" for name in student.provides}
        provided |= {f"teacher.{name}" for name in (teacher.provides if teacher is not None else ())}
        provided |= {"labels"} & set(cast("Mapping[str, Any]", rows))
        for component in self.components:
            for need in sorted(component.term.needs - provided):
                raise ObjectiveError(
                    f"the term {component.name!r} needs {need}, which nobody provides (there is: "
                    f"{', '.join(sorted(provided)) or 'nothing'}): {_REMEDY.get(need, _REMEDY_FOR_FEATURES)}"
                )
        if student.logits is None:
            return
        if teacher is not None and teacher.logits is not None and "teacher.logits" in self.needs:
            check_classes(teacher.logits.classes, student.logits.classes)
        if "labels" in self.needs:
            check_labels(rows["labels"], student.logits.classes)

    def describe(self) -> list[dict[str, Any]]:
        """The list of a config's ``objective:``, plain JSON values."""
        return [component.term.describe() | {"weight": component.weight.describe()} for component in self.components]


def _check_declared(term: Any) -> None:
    expected = {"name": (str, 'a word such as "mine"'), "needs": (Set, 'a set such as frozenset({"student.logits"})')}
    for attribute, (kind, words) in expected.items():
        found = getattr(term, attribute, None)
        if not isinstance(found, kind):
            raise ObjectiveError(
                f"the term {type(term).__name__} has {attribute} = {found!r}, expected {words}: without it the term would not be given "
                f"what it reads, or have no place in the log; set {attribute} in the class"
            )


def _total(sums: list[Tensor], sums_K: Tensor, weights: tuple[float, ...], counts_K: Tensor) -> Tensor:
    if min(weights) == 0.0:
        active = [k for k, weight in enumerate(weights) if weight > 0.0]
        if not active:
            # nothing to learn from at this point of the schedules: a zero that can be differentiated
            return sums_K.new_zeros(()).requires_grad_()
        # left out, not multiplied by 0, which would turn a NaN that weighs nothing into a NaN loss
        sums_K, counts_K = torch.stack([sums[k] for k in active]), counts_K[active]
        weights = tuple(weights[k] for k in active)
    return sums_K.dot(_constants(weights, sums_K.dtype, sums_K.device) / counts_K)


@functools.lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def as_objective(objective: Term | Objective) -> Objective:
    """An objective as it is, a bare term with weight 1.

    Raises:
        ObjectiveError: anything else.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, Term):  # pyright: ignore[reportUnnecessaryIsInstance]
        return objective * 1.0
    raise ObjectiveError(
        f"{objective!r} is no objective: expected a term or a sum of terms, such as 0.1 * CrossEntropy() + 0.9 * KL(temperature=4)"
    )

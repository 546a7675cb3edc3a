"""Does an artefact answer as the student it was made from? Asked at several batch sizes and lengths after every export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import ExportError
from tutelage.export.specs import LENGTH, Runner, TensorSpec, named
from tutelage.models import class_logits
from tutelage.models.calling import Inputs

#: How far a logit of an fp32 artefact may lie from the student's.
FP32_TOLERANCE = 1e-4

#: How large a part of the examples an int8 artefact must sort as the student does to be worth judging at all.
INT8_AGREEMENT = 0.9

#: Batch sizes that are tried: one, odd ones, and one larger than any sample a model is exported from.
BATCHES = (1, 2, 3, 7, 16, 33)


@dataclass(frozen=True)
class Case:
    """One question put to student and artefact alike.

    Args:
        inputs: what both are given.
        batch: examples.
        length: tokens an example, None where there are no tokens.
        padded: whether a part of the tokens is masked.
    """

    inputs: Inputs
    batch: int
    length: int | None
    padded: bool


@dataclass(frozen=True)
class CaseResult:
    """How far the answers to one case lie apart.

    Args:
        batch: examples.
        length: tokens an example, or None.
        padded: whether a part of them is masked.
        max_abs: largest absolute difference of a logit.
        mean_abs: mean absolute difference.
        agreement: fraction of the examples with the same top class.
    """

    batch: int
    length: int | None
    padded: bool
    max_abs: float
    mean_abs: float
    agreement: float


@dataclass(frozen=True)
class Parity:
    """Whether an artefact answers as its student.

    Args:
        cases: each combination of batch and length.
        max_abs: the largest of them.
        mean_abs: over all cases' logits.
        agreement: over all cases' examples.
        tolerance: what ``max_abs`` may be, None for int8.
        passed: whether it may be used.
        why: in a sentence.
    """

    cases: tuple[CaseResult, ...]
    max_abs: float
    mean_abs: float
    agreement: float
    tolerance: float | None
    passed: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """As in ``shipped.json``."""
        return {**asdict(self), "cases": [asdict(case) for case in self.cases]}


def parity_cases(
    pool: Inputs,
    specs: Sequence[TensorSpec],
    student: nn.Module,
    max_batch: int | None = None,
    max_length: int | None = None,
) -> list[Case]:
    """At least six combinations of batch and length, cut from real inputs.

    Batches are 1, 2, odd, and larger than the sample of an export; lengths, where they are free, are 1, odd, whole, and (where
    the student bears it) longer than any in the pool; one case has some of its tokens masked.

    Args:
        pool: real inputs ``[B, ...]``; their examples are repeated where a batch asks for more.
        specs: what the artefact takes; an axis called ``length`` is free.
        student: lengths that it cannot take are left out.
        max_batch, max_length: the artefact's own limits, or None.
    """
    free = {spec.name for spec in specs if LENGTH in spec.shape}
    batches = [batch for batch in BATCHES if max_batch is None or batch < max_batch]
    batches += [max_batch] if max_batch is not None and max_batch < max(BATCHES) else []
    tokens = [values.shape[1] for name, values in named(pool).items() if name in free]
    if not tokens:
        return [Case(_cut(pool, batch, None, free), batch, None, False) for batch in batches]
    whole = tokens[0]
    lengths = [whole, max(1, whole // 2) | 1, 1, whole, 3, 2 * whole + 1]
    cases: list[Case] = []
    for index, wanted in enumerate(lengths):
        batch, length = batches[index % len(batches)], min(wanted, max_length or wanted)
        inputs = _cut(pool, batch, length, free)
        if not _bears(student, inputs):
            length = whole
            inputs = _cut(pool, batch, whole, free)
        cases.append(Case(inputs, batch, length, False))
    if "attention_mask" in free:
        batch = batches[min(3, len(batches) - 1)]
        cases.append(Case(_masked(_cut(pool, batch, whole, free)), batch, whole, True))
    return cases


def check_parity(student: nn.Module, runner: Runner, cases: Sequence[Case], *, int8: bool = False) -> Parity:
    """Put every case to the trained student and to its artefact.

    An fp32 artefact passes when no logit lies more than ``FP32_TOLERANCE`` from the student's. An int8 one is another model by
    intent: it passes when its logits are finite and it mostly agrees (``INT8_AGREEMENT``); what the difference costs is for
    the task's metric to say.

    Args:
        student: the trained module; its train/eval flags are put back.
        runner: the artefact.
        cases: of :func:`parity_cases`.
        int8: whether the artefact is quantised.
    """
    results: list[CaseResult] = []
    sizes: list[int] = []
    for case in cases:
        expected = reference_logits(student, case.inputs)
        try:
            got = runner(case.inputs)
        except ExportError as error:
            return _failed(results, int8, f"{_name(case)} could not be run: {error}")
        if got.shape != expected.shape:
            return _failed(
                results,
                int8,
                f"{_name(case)} gave logits {list(got.shape)}, the student gives {list(expected.shape)}: an axis was fixed in the export",
            )
        # a class that the student masks with −∞ is met exactly by −∞
        broken = ~np.isfinite(got) & (got != expected)
        if broken.any():
            return _failed(results, int8, f"{_name(case)} gave {int(broken.sum())} logits that are NaN or infinite")
        apart = np.zeros_like(expected)
        np.subtract(got, expected, out=apart, where=got != expected)
        apart = np.abs(apart)
        same = got.argmax(axis=1) == expected.argmax(axis=1)
        results.append(
            CaseResult(
                case.batch,
                case.length,
                case.padded,
                float(apart.max()),
                float(apart.mean()),
                float(same.mean()),
            )
        )
        sizes.append(case.batch)
    return _judged(results, sizes, int8)


def reference_logits(student: nn.Module, inputs: Inputs) -> NDArray[np.float64]:
    """The student's own logits ``[B, C]``, in eval mode; its flags are put back."""
    was_training = {module: module.training for module in student.modules()}
    student.eval()
    try:
        with torch.no_grad():
            return class_logits(student, inputs).double().cpu().numpy()
    finally:
        for module, training in was_training.items():
            module.training = training


def _judged(results: Sequence[CaseResult], sizes: Sequence[int], int8: bool) -> Parity:
    worst = max(results, key=lambda result: result.max_abs)
    mean = float(np.average([result.mean_abs for result in results], weights=sizes))
    agreement = float(np.average([result.agreement for result in results], weights=sizes))
    tolerance = None if int8 else FP32_TOLERANCE
    where = f"at batch {worst.batch}" + (f", length {worst.length}" if worst.length is not None else "")
    if int8:
        passed = agreement >= INT8_AGREEMENT
        why = f"the same top class on {agreement:.1%} of the examples, {INT8_AGREEMENT:.0%} asked; logits up to {worst.max_abs:.2g} apart"
    else:
        passed = worst.max_abs <= FP32_TOLERANCE
        relation = "within" if passed else "beyond"
        why = f"largest difference of a logit {worst.max_abs:.2g} ({where}), {relation} {FP32_TOLERANCE:g}"
    return Parity(tuple(results), worst.max_abs, mean, agreement, tolerance, passed, why)


def _failed(results: Sequence[CaseResult], int8: bool, why: str) -> Parity:
    largest = max((result.max_abs for result in results), default=0.0)
    return Parity(tuple(results), largest, 0.0, 0.0, None if int8 else FP32_TOLERANCE, False, why)


def _name(case: Case) -> str:
    return f"a batch of {case.batch}" + (f" with length {case.length}" if case.length is not None else "")


def _cut(pool: Inputs, batch: int, length: int | None, free: set[str]) -> Inputs:
    """``batch`` examples of the pool, repeated from the first where there are fewer; free axes cut or repeated to ``length``."""

    def take(name: str, values: Tensor) -> Tensor:
        rows = values[torch.arange(batch) % values.shape[0]]
        if length is not None and name in free:
            rows = rows[:, torch.arange(length) % rows.shape[1]]
        return rows.contiguous()

    if isinstance(pool, Tensor):
        return take(next(iter(named(pool))), pool)
    return {name: take(name, values) for name, values in pool.items()}


def _masked(inputs: Inputs) -> Inputs:
    """Every second example with the later half of its tokens masked."""
    assert isinstance(inputs, Mapping)
    mask = inputs["attention_mask"].clone()
    mask[1::2, max(1, mask.shape[1] // 2) :] = 0
    return {**inputs, "attention_mask": mask}


def _bears(student: nn.Module, inputs: Inputs) -> bool:
    """Whether the student itself takes such inputs: a length beyond its positions is no fault of the export's."""
    try:
        reference_logits(student, inputs)
    except (RuntimeError, IndexError, ValueError):
        return False
    return True

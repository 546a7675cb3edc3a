"""What a compressed form of a teacher's answers costs: the error of the student's gradient against the dense teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.errors import ConfigError, TeacherError
from tutelage.labels.sampling import row_slices
from tutelage.objectives.definitions import DEFINITIONS
from tutelage.objectives.divergence import check_classes, row_divergence
from tutelage.objectives.sparse import row_sparse
from tutelage.rows import row_count, scores_on, some_rows
from tutelage.signals import AnyScores, ClassScores, Logits, SparseTargets

#: (some rows of the teacher, their numbers among all rows int64 [n], which repeat) -> what a store would keep of them.
Compress = Callable[[ClassScores, Tensor, int], AnyScores]

#: Gradients below this are the rounding of none.
_NO_GRADIENT = 1e-9
#: Rows whose gradients are compared at once hold about this many numbers.
_AT_ONCE = 1 << 21


@torch.no_grad()
def certify(
    scores: ClassScores,
    compress: Compress,
    *,
    divergence: str = "forward_kl",
    parameters: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    rows: int = 64,
    repeats: int = 16,
    seed: int = 0,
    student: ClassScores | None = None,
) -> dict[str, Any]:
    """Compare the student-logit gradient from compressed targets with that from the dense teacher, on a random sample of rows.

    The gradients are those of one *reference student*. Without one given it is the mean of the teacher's distributions over the
    sampled rows: a student that knows how often each class comes, and nothing of the inputs. A student near its teacher has
    smaller gradients, against which the same variance weighs more.

    With the exact gradient g of a row, its estimates ĝ over the repeats and sums over the sampled rows,
    all three errors are in units of the root of Σ‖g‖²:

    - ``relative_bias``: root of Σ‖E ĝ − g‖². What no number of rows or epochs averages away. From R repeats the mean is only
      known up to its own noise, whose expected share is taken off;
    - ``relative_deviation``: root of Σ E‖ĝ − E ĝ‖², of *one* row and one store. In a batch of N rows the noise of the mean
      gradient is smaller by root N;
    - ``relative_error``: root of Σ E‖ĝ − g‖², both together.

    Args:
        scores: the dense teacher, N rows.
        compress: makes what would be stored. Called with some rows, their numbers, and a repeat from 0; a form that is drawn must draw
            anew in each repeat.
        divergence: a key of ``DEFINITIONS``.
        parameters: of the divergence; its defaults otherwise.
        temperature: T > 0 of the divergence.
        rows: sampled without replacement; all of them where there are fewer.
        repeats: R ≥ 2 stores of a form that is drawn; one is made of the others.
        seed: of the rows' choice.
        student: logits of the N rows, in place of the reference student.

    Returns:
        A JSON object: the three errors above; ``relative_bias_noise``, below which a bias cannot be told from none (0 for a form
        that is not drawn); ``form`` (``dense``, ``sampled`` or ``top_k``), ``divergence``, ``parameters``, ``temperature``; ``rows`` and
        ``repeats`` that were used; ``kept_mean`` and ``kept_max``, kept classes of a row; ``gradient_norm``, root of the mean of ‖g‖²;
        ``reference``, ``"marginal"`` or ``"student"``; ``seconds`` that it took. The relative numbers are None where the dense
        gradient is zero: of one row, or of a teacher that says the same of all, the marginal has nothing to learn.

    Raises:
        ConfigError: ``rows`` or ``repeats`` too few.
        ObjectiveError: a divergence that the targets cannot serve.
        TeacherError: no rows; compressed targets of other rows; a teacher or a form whose gradients are not finite.
    """
    started = time.perf_counter()
    if rows < 1 or repeats < 2:
        raise ConfigError(
            f"rows is {rows} and repeats {repeats}: expected at least 1 row and 2 repeats, without which there is no variance to measure"
        )
    chosen = _chosen(scores, rows, seed)
    sampled = some_rows(scores, chosen)
    parameters = {**DEFINITIONS[divergence].parameters, **(parameters or {})}
    asked = _Asked(divergence, parameters, temperature)
    reference = Logits(_marginal(sampled, temperature)) if student is None else some_rows(student, chosen)
    check_classes(scores.classes, reference.classes)
    measured = _measure(sampled, reference, chosen, compress, repeats, asked)
    return _summary(measured) | {
        "divergence": divergence,
        "parameters": parameters,
        "temperature": temperature,
        "reference": "marginal" if student is None else "student",
        "seconds": time.perf_counter() - started,
    }


class _Asked(NamedTuple):
    """The divergence whose gradients are compared."""

    name: str
    parameters: Mapping[str, float]
    temperature: float

    def gradient(self, student_NC: Tensor, teacher: AnyScores) -> Tensor:
        """By the student's logits, float64 ``[N, C]``."""
        student_NC = student_NC.detach().requires_grad_()
        with torch.enable_grad():
            if isinstance(teacher, SparseTargets):
                value_N = row_sparse(
                    self.name, student_NC, scores_on(teacher, torch.device("cpu")), self.temperature, self.parameters
                )
            else:
                theirs_NC = teacher.at(self.temperature).cpu().double()
                value_N = row_divergence(self.name, student_NC, theirs_NC, self.temperature, self.parameters)
            return torch.autograd.grad(value_N.sum(), student_NC)[0]


class _Measured(NamedTuple):
    """What the comparison found, row by row.

    ``exact[N]`` ‖g‖² · ``bias[N]`` ‖E ĝ − g‖² less its noise's expectation · ``variance[N]`` E‖ĝ − E ĝ‖² · ``kept[N]`` classes.
    """

    exact: Tensor
    bias: Tensor
    variance: Tensor
    kept: Tensor
    form: str
    repeats: int


def _measure(
    scores: ClassScores, reference: ClassScores, numbers: Tensor, compress: Compress, repeats: int, asked: _Asked
) -> _Measured:
    parts: list[Tensor] = []
    form, used = "dense", 1
    step = max(1, _AT_ONCE // scores.classes)
    for start in range(0, len(numbers), step):
        of = torch.arange(start, min(start + step, len(numbers)))
        part = some_rows(scores, of)
        # the marginal is one row for all
        student = reference if row_count(reference) == 1 else some_rows(reference, of)
        student_NC = student.at(asked.temperature).cpu().double().expand(len(of), -1)
        exact_NC = asked.gradient(student_NC, part)
        first = compress(part, numbers[of], 0)
        form = first.form if isinstance(first, SparseTargets) else "dense"
        used = repeats if form == "sampled" else 1
        mean_NC, squares_N = torch.zeros_like(exact_NC), torch.zeros(len(of), dtype=torch.float64)
        for repeat in range(used):
            said = first if repeat == 0 else compress(part, numbers[of], repeat)
            off_NC = asked.gradient(student_NC, said) - exact_NC
            mean_NC += off_NC / used
            squares_N += off_NC.square().sum(-1)
        bias_N = mean_NC.square().sum(-1)
        variance_N = (squares_N - used * bias_N).clamp(min=0.0) / max(1, used - 1)
        kept_N = (first.ids >= 0).sum(-1) if isinstance(first, SparseTargets) else torch.full((len(of),), first.classes)
        parts.append(
            torch.stack((exact_NC.square().sum(-1), bias_N - variance_N / used, variance_N, kept_N.cpu().double()))
        )
    exact, bias, variance, kept = torch.cat(parts, dim=1)
    return _Measured(exact, bias, variance, kept, form, used)


def _summary(measured: _Measured) -> dict[str, Any]:
    exact, bias, variance, kept, form, repeats = measured
    rows, whole = len(exact), float(exact.sum())
    if not (math.isfinite(whole) and bool(bias.isfinite().all() & variance.isfinite().all())):
        raise TeacherError(
            f"gradients of the {rows:,} sampled rows are not finite, from the dense teacher or from what would be stored of it: a "
            "certificate would say nothing; look at the teacher's outputs"
        )
    # two standard errors of the sum where nothing is biased: of a mean of R, ‖·‖² varies by at most 2 (variance / R)²
    noise = 0.0 if repeats == 1 else 2.0 * math.sqrt(2.0 * float(variance.square().sum())) / repeats
    biased, varied = max(0.0, float(bias.sum())), float(variance.sum())
    return {
        "form": form,
        "rows": rows,
        "repeats": repeats,
        "kept_mean": float(kept.mean()),
        "kept_max": int(kept.max()),
        "gradient_norm": math.sqrt(whole / rows),
        "relative_bias": _relative(biased, whole, rows),
        "relative_bias_noise": _relative(noise, whole, rows),
        "relative_deviation": _relative(varied, whole, rows),
        "relative_error": _relative(biased + varied, whole, rows),
    }


def _relative(square: float, whole: float, rows: int) -> float | None:
    return math.sqrt(square / whole) if math.sqrt(whole / rows) > _NO_GRADIENT else None


def _chosen(scores: ClassScores, rows: int, seed: int) -> Tensor:
    """Numbers of the sampled rows, rising, int64 ``[n]``."""
    there = row_count(scores)
    if there == 0:
        raise TeacherError("the teacher's scores have no rows: there is nothing to compare")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(there, generator=generator)[:rows].sort().values


def _marginal(scores: ClassScores, temperature: float) -> Tensor:
    """Logits ``[1, C]`` of the mean of the rows' distributions, float64."""
    total_C = torch.zeros(scores.classes, dtype=torch.float64)
    for _, part in row_slices(scores):
        total_C += torch.softmax(part.at(temperature).double() / temperature, dim=-1).sum(0).cpu()
    return temperature * (total_C / total_C.sum()).log()[None]

"""Why a step went wrong: which component, and which examples. Runs only when a loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data import hex_id
from tutelage.errors import NonFiniteError
from tutelage.models import class_logits
from tutelage.objectives import Component, Objective
from tutelage.signals import ClassScores, Logits, MixtureLogits, Rows, Signals
from tutelage.teachers import Teacher

_IDS_SHOWN = 5


def non_finite_error(
    model: nn.Module, objective: Objective, teacher: Teacher | None, batches: Sequence[Any], step: int, progress: float
) -> NonFiniteError:
    """Go over a step's batches again, one component at a time, and say what is not finite and for which examples."""
    findings: list[str] = []
    spoilt = non_finite_weights(model)
    if spoilt is not None:
        findings.append(spoilt)
    for batch in batches:
        with torch.no_grad():
            values = class_logits(model, batch["student"])
        rows: Rows = {"labels": batch["labels"], "ids": batch["ids"]}
        bad_rows = bad_logits(values)
        if bool(bad_rows.any()):
            findings.append(f"the student's own logits are not finite for {name_examples(rows['ids'][bad_rows])}")
            continue
        said = teacher.signals(batch) if teacher is not None else None
        for component in objective.components:
            if component.weight(progress) == 0.0:
                continue  # it is in the log only, and not in the loss
            bad_rows = _bad_rows(component, values, said, rows, progress)
            if bool(bad_rows.any()):
                findings.append(
                    f"component {component.name!r} is not finite for {name_examples(rows['ids'][bad_rows])}"
                )
    if not findings:
        ids = torch.cat([batch["ids"] for batch in batches])
        elsewhere = ", or another process names the examples" if torch.distributed.is_initialized() else ""
        findings = [
            "every component and its gradient at the logits are finite, so the student's own backward pass overflowed"
            f"{elsewhere}, in a batch with {name_examples(ids)}"
        ]
    return NonFiniteError(
        f"the loss or its gradient is not finite at step {step}; the step was not taken, and the weights are those before it: "
        f"{'; '.join(dict.fromkeys(findings))}. Lower the learning rate, clip gradients (max_grad_norm), look at those examples, or "
        "train in float32"
    )


def non_finite_weights(model: nn.Module) -> str | None:
    """Which weights are NaN or infinite, in words; None where none is."""
    names = [name for name, values in model.named_parameters() if not bool(torch.isfinite(values).all())]
    if not names:
        return None
    return f"the student's weights were not finite before the step ({', '.join(names[:3])}{', …' if names[3:] else ''})"


def bad_logits(values: Tensor) -> Tensor:
    """``[N]`` bool: rows of logits ``[N, C]`` with NaN or +inf; −inf may be a masked class."""
    return (torch.isnan(values) | (values == torch.inf)).any(1)


def name_examples(ids: Tensor) -> str:
    """The first of the ids, as a person can look them up."""
    shown = ", ".join(hex_id(content_id) for content_id in ids[:_IDS_SHOWN].tolist())
    more = f" and {len(ids) - _IDS_SHOWN} more" if len(ids) > _IDS_SHOWN else ""
    return f"example ids {shown}{more}"


def _bad_rows(component: Component, values: Tensor, said: Signals | None, rows: Rows, progress: float) -> Tensor:
    """``[N]`` bool: rows whose value, or whose gradient at the logits, is not finite."""
    fine, gradient_fine = _look(component, values, said, rows, progress)
    if fine and bool(gradient_fine.all()):
        return ~gradient_fine
    # A finite gradient does not clear a row whose value is NaN, and a term that relates rows spoils them all: ask
    # about each row alone, and blame all only if no row stands out.
    alone = torch.zeros_like(gradient_fine)
    for row in range(len(values)):
        one = slice(row, row + 1)
        one_row: Rows = {"labels": rows["labels"][one], "ids": rows["ids"][one]}
        row_fine, row_gradient_fine = _look(component, values[one], _row_of(said, one), one_row, progress)
        alone[row] = not row_fine or not bool(row_gradient_fine.all())
    if bool(alone.any()):
        return alone
    return ~gradient_fine if not bool(gradient_fine.all()) else torch.ones_like(gradient_fine)


def _look(
    component: Component, values: Tensor, said: Signals | None, rows: Rows, progress: float
) -> tuple[bool, Tensor]:
    """Whether the component's sum is finite, and ``[N]`` whether each row's gradient is."""
    with torch.enable_grad():
        logits = values.clone().requires_grad_()
        total, _ = component.term(Signals(Logits(logits)), said, rows, progress)
        (gradient,) = torch.autograd.grad(total, logits, allow_unused=True) if total.requires_grad else (None,)
    gradient = torch.zeros_like(values) if gradient is None else gradient
    return bool(torch.isfinite(total)), torch.isfinite(gradient).all(dim=1)


def _row_of(said: Signals | None, one: slice) -> Signals | None:
    scores: ClassScores | None = said.logits if said is not None else None
    if isinstance(scores, MixtureLogits):
        return Signals(MixtureLogits(scores.members[:, one], scores.weights))
    return Signals(Logits(scores.at(1.0)[one])) if scores is not None else None

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
from tutelage.signals import Logits, Rows, Signals
from tutelage.teachers import Teacher

_IDS_SHOWN = 5


def non_finite_error(
    model: nn.Module, objective: Objective, teacher: Teacher | None, batches: Sequence[Any], step: int, progress: float
) -> NonFiniteError:
    """Go over a step's batches again, one component at a time, and say what is not finite and for which examples."""
    findings: list[str] = []
    for batch in batches:
        values = class_logits(model, batch["student"]).detach()
        rows: Rows = {"labels": batch["labels"], "ids": batch["ids"]}
        bad_rows = torch.isnan(values).any(1) | (values == torch.inf).any(1)
        if bool(bad_rows.any()):
            findings.append(f"the student's own logits are not finite for {_name(rows['ids'][bad_rows])}")
            continue
        said = teacher.signals(batch) if teacher is not None else None
        for component in objective.components:
            bad_rows = _bad_rows(component, values, said, rows, progress)
            if bool(bad_rows.any()):
                findings.append(f"component {component.name!r} is not finite for {_name(rows['ids'][bad_rows])}")
    if not findings:
        ids = torch.cat([batch["ids"] for batch in batches])
        findings = [
            "every component and its gradient at the logits are finite, so the student's own backward pass overflowed, in a batch "
            f"with {_name(ids)}"
        ]
    return NonFiniteError(
        f"the loss or its gradient is not finite at step {step}; the step was not taken and the weights are as before. "
        f"{'; '.join(dict.fromkeys(findings))}. Lower the learning rate, clip gradients (max_grad_norm), look at those examples, or "
        "train in float32"
    )


def _bad_rows(component: Component, values: Tensor, said: Signals | None, rows: Rows, progress: float) -> Tensor:
    """``[N]`` bool: rows whose value, or gradient at the logits, is not finite when the row stands alone."""
    bad = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    with torch.enable_grad():
        logits = values.clone().requires_grad_()
        total, _ = component.term(Signals(Logits(logits)), said, rows, progress)
        (gradient,) = torch.autograd.grad(total, logits, allow_unused=True) if total.requires_grad else (None,)
    if gradient is not None:
        bad |= ~torch.isfinite(gradient).all(dim=1)
    if not bool(bad.any()) and not bool(torch.isfinite(total)):
        bad |= True
    return bad


def _name(ids: Tensor) -> str:
    shown = ", ".join(hex_id(content_id) for content_id in ids[:_IDS_SHOWN].tolist())
    more = f" and {len(ids) - _IDS_SHOWN} more" if len(ids) > _IDS_SHOWN else ""
    return f"example ids {shown}{more}"

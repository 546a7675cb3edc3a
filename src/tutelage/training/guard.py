"""Why a step went wrong: which component, and which examples. Runs only when a loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data import hex_id, rows_of
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models import bad_rows, scores_and_features
from tutelage.objectives import Component, Objective
from tutelage.padding import real_tokens, without_padding
from tutelage.rows import row_count, some_rows
from tutelage.signals import NO_LABEL, ClassMap, HeadLogits, Logits, Rows, Signals, layers_needed, whole
from tutelage.teachers import Teacher

_IDS_SHOWN = 5
#: Numbers of a head's logits that are looked at together.
_BLOCK = 1 << 22


def non_finite_error(
    model: nn.Module,
    objective: Objective,
    teacher: Teacher | None,
    batches: Sequence[Any],
    step: int,
    progress: float,
    class_map: ClassMap | None = None,
) -> NonFiniteError:
    """Go over a step's batches again, one component at a time, and say what is not finite and for which examples."""
    findings: list[str] = []
    spoilt = non_finite_weights(model)
    if spoilt is not None:
        findings.append(spoilt)
    findings += [_spoilt_term(name, weights) for name, weights in objective.weights.items() if not _all_finite(weights)]
    layers = layers_needed(objective.needs, "student")
    for batch in batches:
        findings += _of_batch(model, objective, teacher, batch, layers, progress, class_map)
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


def _of_batch(
    model: nn.Module,
    objective: Objective,
    teacher: Teacher | None,
    batch: Any,
    layers: Sequence[str],
    progress: float,
    class_map: ClassMap | None,
) -> list[str]:
    """What is not finite of a batch, in words; what comes first, and spoils the rest, alone."""
    with torch.no_grad():
        scores, features = scores_and_features(
            model, batch["student"], batch["labels"], layers, batch.get("student_rows")
        )
    mask = real_tokens(batch["student"], batch.get("student_rows")) if features else None
    features = {layer: without_padding(given, mask) for layer, given in features.items()}
    rows = rows_of(batch)
    ids, shown = rows["ids"], _shown(rows, batch["ids"])
    bad = bad_rows(scores)
    if bool(bad.any()):
        return [f"the student's own logits are not finite for {name_examples(ids[bad])}"]
    found = [layer for layer in layers if not _fine_rows([features[layer]]).all()]
    if found:
        bad = ~_fine_rows([features[layer] for layer in found])
        return [f"what the student's {', '.join(map(repr, found))} gave is not finite for {name_examples(shown[bad])}"]
    said = teacher.signals(batch) if teacher is not None else None
    if class_map is not None:
        scores = class_map.of_student(scores)
        if said is not None and said.logits is not None:
            said = replace(said, logits=class_map.of_teacher(said.logits))
    wrong = _bad_teacher(said)
    if wrong is not None and bool(wrong.any()):
        return [f"the teacher's own scores are not finite for {name_examples(ids[wrong])}; look at its weights"]
    return _bad_components(objective, Signals(scores, features, mask), said, rows, shown, progress)


def _shown(rows: Rows, of_examples: Tensor) -> Tensor:
    """The id of each example that layers show."""
    return of_examples if "examples" in rows else rows["ids"]


def non_finite_weights(model: nn.Module) -> str | None:
    """Which weights are NaN or infinite, in words; None where none is."""
    names = [name for name, values in model.named_parameters() if not bool(torch.isfinite(values).all())]
    if not names:
        return None
    return f"the student's weights were not finite before the step ({', '.join(names[:3])}{', …' if names[3:] else ''})"


def name_examples(ids: Tensor) -> str:
    """The first of the ids, each once, as a person can look them up."""
    distinct = list(dict.fromkeys(ids.tolist()))
    shown = ", ".join(hex_id(content_id) for content_id in distinct[:_IDS_SHOWN])
    more = f" and {len(distinct) - _IDS_SHOWN} more" if len(distinct) > _IDS_SHOWN else ""
    return f"example ids {shown}{more}"


def _bad_components(
    objective: Objective, student: Signals, said: Signals | None, rows: Rows, shown: Tensor, progress: float
) -> list[str]:
    """What is not finite of each component, in words."""
    findings: list[str] = []
    for component in objective.components:
        if component.weight(progress) == 0.0:
            continue  # it is in the log only, and not in the loss
        hears_layers = any(".features[" in need for need in component.term.needs)
        if "examples" in rows and hears_layers:
            ids, bad = shown, _bad_texts(component, student, said, rows, shown, progress)
        else:
            ids, bad = rows["ids"], _bad_in_blocks(component, student, said, rows, progress)
        if bool(bad.any()):
            findings.append(f"component {component.name!r} is not finite for {name_examples(ids[bad])}")
    return findings


def _bad_in_blocks(component: Component, student: Signals, said: Signals | None, rows: Rows, progress: float) -> Tensor:
    """``[N]`` bool: as :func:`_bad_rows`; a head is multiplied out for some rows at a time."""
    scores = student.logits
    assert isinstance(scores, Logits | HeadLogits)
    count = row_count(scores)
    size = count if isinstance(scores, Logits) else max(_BLOCK // scores.classes, 1)
    if "examples" in rows:
        student, said = _without_layers(student), None if said is None else _without_layers(said)
    bad = [torch.zeros(0, dtype=torch.bool, device=rows["ids"].device)]
    for start in range(0, count, max(size, 1)):
        some = slice(start, start + size)
        with torch.no_grad():
            values = whole(some_rows(scores, some), "looking for what is not finite").at(1.0)
        mine = replace(_rows_in(replace(student, logits=None), some), logits=Logits(values))
        part: Rows = {"labels": rows["labels"][some], "ids": rows["ids"][some]}
        heard = _rows_in(said, some) if said is not None else None
        bad.append(_bad_rows(component, mine, heard, part, progress))
    return torch.cat(bad)


def _bad_texts(
    component: Component, student: Signals, said: Signals | None, rows: Rows, shown: Tensor, progress: float
) -> Tensor:
    """``[B]`` bool: as :func:`_bad_rows`, of the texts that layers show where rows are tokens."""
    if not component.term.needs & {"student.logits", "teacher.logits", "labels"}:
        texts: Rows = {"labels": torch.full_like(shown, NO_LABEL), "ids": shown}
        heard = None if said is None else replace(said, logits=None)
        return _bad_rows(component, replace(student, logits=None), heard, texts, progress)
    # of a term of tokens and texts at once no part can be asked about alone
    with torch.no_grad():
        values = None if student.logits is None else whole(student.logits, "looking for what is not finite").at(1.0)
    mine = replace(student, logits=None if values is None else Logits(values))
    found = _look(component, mine, said, rows, progress)
    every = all(bool(torch.isfinite(given).all()) for given in [found.total, *found.at_leaves, *found.at_weights])
    return torch.full_like(shown, not every, dtype=torch.bool)


def _without_layers(said: Signals) -> Signals:
    return replace(said, features={}, mask=None)


def _bad_teacher(said: Signals | None) -> Tensor | None:
    """``[N]`` bool: rows in which a teacher's head, multiplied out for some rows at a time, makes NaN or +inf of finite hidden states.

    Other teachers' scores were looked at where they were given.
    """
    scores = said.logits if said is not None else None
    if not isinstance(scores, HeadLogits):
        return None
    size = max(_BLOCK // scores.classes, 1)
    parts = [slice(start, start + size) for start in range(0, row_count(scores), size)]
    return torch.cat(
        [bad_rows(Logits(whole(some_rows(scores, of), "a teacher").at(1.0))) for of in parts] or [torch.zeros(0).bool()]
    )


def _all_finite(module: nn.Module) -> bool:
    return all(bool(torch.isfinite(values).all()) for values in module.parameters())


def _spoilt_term(name: str, weights: nn.Module) -> str:
    return f"the weights of the term {name!r} were not finite before the step ({type(weights).__name__})"


def _fine_rows(values: Sequence[Tensor]) -> Tensor:
    """``[N]`` bool: rows in which every one of several tensors ``[N, ...]`` is finite."""
    return torch.stack([torch.isfinite(one.reshape(len(one), -1)).all(dim=1) for one in values]).all(dim=0)


def _bad_rows(component: Component, student: Signals, said: Signals | None, rows: Rows, progress: float) -> Tensor:
    """``[N]`` bool: rows whose value, or whose gradient at what the student said, is not finite."""
    fine, gradient_fine = _judged(_look(component, student, said, rows, progress))
    if fine and bool(gradient_fine.all()):
        return ~gradient_fine
    # A finite gradient does not clear a row whose value is NaN, and a term that relates rows spoils them all: ask
    # about each row alone, and blame all only if no row stands out.
    alone = torch.zeros_like(gradient_fine)
    for row in range(len(alone)):
        one = slice(row, row + 1)
        one_row: Rows = {"labels": rows["labels"][one], "ids": rows["ids"][one]}
        heard = _rows_in(said, one) if said is not None else None
        try:
            row_fine, row_gradient_fine = _judged(_look(component, _rows_in(student, one), heard, one_row, progress))
        except TutelageError:
            break  # a term that relates rows may refuse one alone
        alone[row] = not row_fine or not bool(row_gradient_fine.all())
    if bool(alone.any()):
        return alone
    return ~gradient_fine if not bool(gradient_fine.all()) else torch.ones_like(gradient_fine)


class _Look(NamedTuple):
    """A component's sum, and its gradients at what the student said and at the term's own weights."""

    total: Tensor
    at_leaves: list[Tensor]
    at_weights: list[Tensor]


def _judged(found: _Look) -> tuple[bool, Tensor]:
    """Whether the sum and the gradient at the term's weights are finite, and ``[N]`` each row's gradient."""
    finite = all(bool(torch.isfinite(given).all()) for given in [found.total, *found.at_weights])
    return finite, _fine_rows(found.at_leaves)


def _look(component: Component, student: Signals, said: Signals | None, rows: Rows, progress: float) -> _Look:
    weights = component.term.weights
    learnt = [] if weights is None else [weight for weight in weights.parameters() if weight.requires_grad]
    with torch.enable_grad():
        features = {layer: values.clone().requires_grad_() for layer, values in student.features.items()}
        mine, leaves = replace(student, features=features), [*features.values()]
        if isinstance(student.logits, Logits):
            leaves = [student.logits.values.clone().requires_grad_(), *leaves]
            mine = replace(mine, logits=Logits(leaves[0]))
        total, _ = component.term(mine, said, rows, progress)
        found: Any = [None] * len([*leaves, *learnt])
        if total.requires_grad:
            found = torch.autograd.grad(total, [*leaves, *learnt], allow_unused=True)
    at_leaves = [given for given in found[: len(leaves)] if given is not None] or [torch.zeros_like(leaves[0])]
    return _Look(total, at_leaves, [given for given in found[len(leaves) :] if given is not None])


def _rows_in(said: Signals, some: slice) -> Signals:
    features = {layer: values[some] for layer, values in said.features.items()}
    scores = some_rows(said.logits, some) if said.logits is not None else None
    return Signals(scores, features, None if said.mask is None else said.mask[some])

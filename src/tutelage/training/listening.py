"""What student and teacher say of a batch: logits, and what the layers gave that some term listens to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import TrainingArguments

from tutelage.data import Batch, CompletionView, TransferSet, rows_of
from tutelage.errors import ConfigError, ModelError, NonFiniteError, ObjectiveError
from tutelage.models import bad_rows, scores_and_features
from tutelage.models.calling import unwrapped
from tutelage.objectives import Objective
from tutelage.padding import real_tokens
from tutelage.rows import row_count, scores_on
from tutelage.signals import NO_LABEL, ClassMap, HeadLogits, Logits, Rows, Signals, layers_needed
from tutelage.teachers import ModuleTeacher, ShowsLayers, Teacher
from tutelage.training.guard import name_examples, non_finite_weights
from tutelage.training.term_weights import UNSHARDED

__all__ = [
    "all_rows",
    "check_labels_for",
    "first_signals",
    "first_with_rows",
    "refuse_texts_that_see_one_another",
    "refuse_what_taps_do_not_survive",
    "rows_of",
    "say_adjustments",
    "showing",
    "student_signals",
    "teacher_signals",
]

logger = logging.getLogger(__name__)

ALL_CLASSES = ClassMap()

#: Relative differences of half of the rows that rounding explains.
_SLACK, _SLACK_OF_HALVES = {torch.float64: 1e-6, torch.float32: 1e-2}, 0.05


def student_signals(model: nn.Module, batch: Any, layers: Sequence[str], class_map: ClassMap = ALL_CLASSES) -> Signals:
    """The student's scores of the batch's N rows and these layers' features ``[B, ...]``, with whatever gradient the caller allows.

    Beside the features, which of its view's tokens are no padding.

    Raises:
        ModelError: it returns no logits, a layer gives no features, or no gradient would reach it from there.
        ConfigError: a class map of other classes than the student's.
    """
    scores, features = scores_and_features(model, batch["student"], batch["labels"], layers, batch.get("student_rows"))
    own = scores.values if isinstance(scores, Logits) else scores.hidden
    if torch.is_grad_enabled() and own.requires_grad:
        for layer, given in features.items():
            if not given.requires_grad:
                raise ModelError(
                    f"no gradient leads from layer {layer!r} of {type(unwrapped(model)).__name__} to its weights: a term on it would teach "
                    "nothing, with a falling loss to show for its projector; unfreeze what comes before it, do not detach it, and with "
                    "gradient checkpointing say use_reentrant=False"
                )
    mask = real_tokens(batch["student"], batch.get("student_rows")) if features else None
    return Signals(class_map.of_student(scores), features, mask)


def teacher_signals(teacher: Teacher | None, batch: Batch, class_map: ClassMap = ALL_CLASSES) -> Signals | None:
    """What the teacher says of a batch, of the classes that both know; None without a teacher.

    Raises:
        TeacherError, ModelError: as the teacher's own.
        ConfigError: a class map of other classes than the teacher's.
    """
    if teacher is None:
        return None
    said = teacher.signals(batch)
    return said if said.logits is None else replace(said, logits=class_map.of_teacher(said.logits))


def showing(teacher: Teacher | None, layers: Sequence[str]) -> Teacher | None:
    """A teacher that shows these layers and no others, where it can be asked for them.

    Raises:
        ModelError, TeacherError: a layer that it cannot show.
    """
    return teacher.with_features(layers) if isinstance(teacher, ShowsLayers) else teacher


def first_signals(student: nn.Module, batch: Any, layers: Sequence[str], class_map: ClassMap = ALL_CLASSES) -> Signals:
    """The student's signals for a first look, in eval mode and without gradient; the model is as before afterwards.

    Raises:
        ModelError: it gives another number of rows than there are examples, or as :func:`student_signals`.
        ConfigError: as :func:`student_signals`.
        NonFiniteError: logits that are NaN or infinite already.
    """
    training = student.training
    device = next((parameter.device for parameter in student.parameters()), batch["ids"].device)
    student.eval()
    with torch.no_grad():
        found = student_signals(
            student, {**batch, "student": send_to_device(batch["student"], device)}, layers, class_map
        )
    student.train(training)
    assert isinstance(found.logits, Logits | HeadLogits)
    ids = rows_of(batch)["ids"]
    scores = scores_on(found.logits, ids.device)
    if row_count(scores) != len(ids):
        raise ModelError(
            f"the student {type(student).__name__} gave {row_count(scores)} rows for {len(ids)} examples: rows would meet other "
            "examples' labels; return one row an example"
        )
    bad = bad_rows(scores)
    if bool(bad.any()):
        cause = non_finite_weights(student) or "its weights are finite, so look at the model and its inputs"
        raise NonFiniteError(
            f"the student's logits are not finite before the first step, for {name_examples(ids[bad])}: {cause}. "
            "Nothing can be learnt from there; initialise or load it anew"
        )
    features = {layer: given.to(ids.device) for layer, given in found.features.items()}
    return Signals(scores, features, None if found.mask is None else found.mask.to(ids.device))


def refuse_texts_that_see_one_another(
    student: nn.Module, teacher: Teacher | None, data: TransferSet, of: Tensor
) -> None:
    """Find out that a packed text's scores are those that it has alone, for student and teacher.

    Args:
        student: in whatever mode; it is as before afterwards.
        teacher: only a module is asked.
        data: the transfer set; nothing is asked of one that is not packed.
        of: some of its examples, int64 ``[B']``; a single one cannot be packed with another.

    Raises:
        ModelError: a model takes the packed texts for one, so that each is read with the others in front of it.
    """
    asked: dict[str, Callable[[Any], Signals]] = {}
    if _packed(data.student_view):
        asked[f"the student {type(unwrapped(student)).__name__}"] = lambda batch: first_signals(student, batch, ())
    if isinstance(teacher, ModuleTeacher) and (_packed(data.student_view) or _packed(data.teacher_view)):
        asked[f"the teacher {type(unwrapped(teacher.model)).__name__}"] = teacher.signals
    for who, ask in asked.items() if len(of) > 1 else ():
        found = [ask(data.batch(some)).logits for some in (of, of[-1:])]
        together, alone = (_numbers_of(scores) for scores in found)
        apart = (together[-len(alone) :] - alone).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-12)
        if float(apart.median()) > _SLACK.get(alone.dtype, _SLACK_OF_HALVES):
            raise ModelError(
                f"{who} gives other scores for a text when others are packed before it (by {float(apart.median()):.2g} of their size): it "
                "reads them as one text, and would be taught to go on from another example's; use layout='padded', or a model whose "
                "attention follows position_ids"
            )


def _packed(view: object) -> bool:
    return isinstance(view, CompletionView) and view.layout == "packed"


def _numbers_of(scores: Any) -> Tensor:
    """``[N, ...]`` hidden states before the head, or logits."""
    return scores.hidden if isinstance(scores, HeadLogits) else scores.at(1.0)


def say_adjustments(objective: Objective) -> None:
    """Log what the terms of a fitted objective put between layers that would not have met."""
    for component in objective.components:
        words = component.term.adjustments()
        if words is not None:
            logger.info("%s: %s", component.name, words)


def check_labels_for(objective: Objective, data: TransferSet) -> None:
    """Raise ObjectiveError for a term that needs labels where no example has one, and for texts of which nothing is to be learnt."""
    if data.token_level and data.labelled == 0:
        raise ObjectiveError(
            f"labels are {tuple(data.known_labels.shape)}, one a token, and none of them is a label: there is no row to learn from; look "
            "at the masks given to next_token_labels"
        )
    lacking = [c.name for c in objective.components if "labels" in c.term.needs]
    if lacking and data.labelled == 0:
        raise ObjectiveError(
            f"{', '.join(lacking)} needs labels, and none of the {len(data)} examples of the transfer set has one: it would be 0 "
            "throughout; leave the term out or give labels"
        )


def first_with_rows(data: TransferSet, count: int) -> Tensor:
    """The first examples that have a row, int64; all of them do where rows are examples."""
    if not data.token_level:
        return torch.arange(min(count, len(data)))
    return (data.known_labels != NO_LABEL).any(dim=1).nonzero()[:count, 0]


def all_rows(data: TransferSet) -> Rows:
    """The rows of a whole transfer set."""
    return rows_of({"ids": data.ids, "labels": data.known_labels, "student": None})


def refuse_what_taps_do_not_survive(objective: Objective, args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse the ways of training under which a tapped layer, or a term's own weights, would silently take no part.

    Raises:
        ConfigError: names the first of them, and what to use instead.
    """
    layers = layers_needed(objective.needs, "student")
    if not layers:
        return
    who = f"the objective listens to the student's {', '.join(map(repr, layers))}, and"
    refusals = {
        f"{who} torch_compile=True is set: a graph that torch.compile made before runs past the taps, and nothing would be learnt from "
        "those layers; leave it False": args.torch_compile,
        f"{who} {args.n_gpu} GPUs share one process (DataParallel), whose replicas no tap reaches: launch one process a GPU "
        "(torchrun --nproc-per-node=…)": args.n_gpu > 1,
        f"{who} the student is sharded ({accelerator.distributed_type.value}): what a layer gives there is not tested with shards; train "
        "with DDP (torchrun without FSDP or DeepSpeed)": accelerator.distributed_type not in UNSHARDED,
        f"{who} to nothing else of it, in {args.world_size} processes: DDP waits for the gradient of every weight, also of the "
        "layers behind; add a term on logits": args.world_size > 1 and "student.logits" not in objective.needs,
    }
    for message, refused in refusals.items():
        if refused:
            raise ConfigError(message)

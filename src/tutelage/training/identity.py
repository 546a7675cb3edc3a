"""What decides a run's weights, written into each checkpoint and held against the run that resumes from it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from tutelage.data import Batch, TransferSet
from tutelage.errors import CheckpointError
from tutelage.objectives import Objective
from tutelage.rows import some_rows
from tutelage.signals import ClassMap, Signals, SparseTargets
from tutelage.training.checkpoints import Fingerprint, compare_fingerprints

#: Arguments that decide the weights; the others (logging, saving, hub) may change between a run and its resumption.
_DECISIVE_ARGUMENTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "optim_args",
    "optim_target_modules",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "tf32",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "dataloader_drop_last",
)

_PROBE = "probe"
#: Rows of the teacher's answers that a probe looks at: an example of text has hundreds, over a large vocabulary.
_ROWS_PROBED = 8
#: Relative differences that another machine, thread count or precision explains, and another view or teacher does not.
_TOLERANCE = {"student_view": 1e-4, "teacher_view": 1e-4, "teacher": 2e-2, "teacher_features": 2e-2}


def describe_run(
    args: TrainingArguments,
    objective: Objective,
    student: nn.Module,
    data: TransferSet,
    optimizer: str,
    class_map: ClassMap | None = None,
) -> dict[str, Any]:
    """Plain JSON values, equal for two runs only if they train the same student on the same data in the same way.

    Args:
        args: the arguments.
        objective: the objective.
        student: its kind, layers and the shapes of its weights count, not their values.
        data: the transfer set.
        optimizer: what is known of an optimiser that the user made, or ``""``.
        class_map: which classes student and teacher share, where that was declared.
    """
    digest = sha256(data.ids.numpy().tobytes() + data.known_labels.numpy().tobytes())
    weights = [(name, tuple(values.shape), str(values.dtype)) for name, values in student.state_dict().items()]
    layers = sha256(f"{weights}{_described(student)}".encode()).hexdigest()
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return {
        **{name: _plain(getattr(args, name, None)) for name in _DECISIVE_ARGUMENTS},
        "world_size": args.world_size,
        "objective": objective.describe(),
        "student": f"{type(student).__name__}, {parameters:,} parameters, {layers[:16]}",
        "transfer_set": f"{len(data)} examples, {data.labelled} labelled, {digest.hexdigest()[:16]}",
        "augmentation": f"{_described(data.augment)}, seed {data.seed}" if data.augment is not None else "none",
        "student_view": _described(data.student_view),
        "teacher_view": _described(data.teacher_view),
        **({"views": data.views} if data.views is not None else {}),
        **({"class_map": _map_in_words(class_map)} if class_map is not None else {}),
        **({"optimizer": optimizer} if optimizer else {}),
    }


def describe_optimizer(optimizer: torch.optim.Optimizer | None, kind: Any = None) -> str:
    """A user's own optimiser in words: its class and each group's settings, ``""`` for none."""
    if optimizer is None:
        return _described(kind) if kind is not None else ""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return f"{type(optimizer).__name__} {_described(groups)}"


def probe(batch: Batch, said: Signals | None) -> dict[str, list[float]]:
    """A few numbers that another view, augmentation or teacher would change: functions have no name to tell them by.

    Args:
        batch: the same few examples in every run.
        said: the teacher's signals for them.
    """
    found = {"student_view": _sketch(batch["student"])}
    if "teacher" in batch:
        found["teacher_view"] = _sketch(batch["teacher"])
    if said is not None and said.logits is not None:
        scores = some_rows(said.logits, slice(_ROWS_PROBED))
        found["teacher"] = _sketch(_placed(scores) if isinstance(scores, SparseTargets) else scores.at(1.0))
    if said is not None and said.features:
        found["teacher_features"] = _sketch(said.features)
    return found


def with_probe(fingerprint: Fingerprint, found: Mapping[str, list[float]]) -> Fingerprint:
    """The fingerprint as a checkpoint keeps it."""
    return {**fingerprint, _PROBE: dict(found)}


def compare_runs(then: Fingerprint, now: Fingerprint, where: Path) -> None:
    """Refuse to go on with a run that has become another one.

    Args:
        then: :func:`with_probe` of the run that wrote the checkpoint.
        now: of this one.
        where: the checkpoint.

    Raises:
        CheckpointError: lists what the checkpoint says and what is asked for now.
    """
    facts_then, facts_now = ({key: run[key] for key in run if key != _PROBE} for run in (then, now))
    compare_fingerprints(facts_then, facts_now, where)
    seen: Mapping[str, list[float]] = then.get(_PROBE, {})
    changed: dict[str, tuple[Any, Any]] = {}
    for name, numbers in now[_PROBE].items():
        before = seen.get(name, [])
        slack = _TOLERANCE[name] * max((abs(number) for number in before), default=0.0)
        if len(before) != len(numbers) or any(abs(a - b) > slack + 1e-12 for a, b in zip(before, numbers, strict=True)):
            changed[name] = (before, numbers)
    if changed:
        lines = "\n".join(
            f"  {name}: the first examples give {[round(x, 4) for x in a]} in the checkpoint, {[round(x, 4) for x in b]} now"
            for name, (a, b) in changed.items()
        )
        raise CheckpointError(
            f"{where} was written by a run that differs from this one:\n{lines}\nThe name is the same, what it does is not. Going on "
            "would mix two runs into a model that neither describes. Restore it, or start anew in another folder"
        )


def _sketch(values: Any) -> list[float]:
    """One number per example and tensor, a fixed projection of it."""
    if isinstance(values, Mapping):
        return [number for name in sorted(values) for number in _sketch(values[name])]
    assert isinstance(values, Tensor)
    rows = torch.nan_to_num(values.detach().double().cpu()[:, None].flatten(1), neginf=-1e4, posinf=1e4)
    weights = torch.cos(torch.arange(rows.shape[1], dtype=torch.float64) + 0.5)
    return [math.fsum(row) for row in (rows * weights).tolist()]


def _placed(targets: SparseTargets) -> Tensor:
    """Each row's probabilities ``[N]`` together, each weighed by its class: the same ones of other classes are another answer."""
    weights = torch.cos(targets.ids.cpu().double() + 0.5)
    return (targets.probs.detach().cpu().double() * weights).sum(dim=1)


def _described(thing: Any) -> str:
    """``repr`` without the memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing)) if thing is not None else "none"


def _map_in_words(class_map: ClassMap) -> str:
    said = str(class_map.describe())
    return said if len(said) <= 80 else f"{said[:60]}…, {sha256(said.encode()).hexdigest()[:16]}"


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else str(getattr(value, "value", value))

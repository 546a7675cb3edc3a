"""A config's ``training``: arguments of ``transformers.TrainingArguments``, checked by name, type and range."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from tutelage.config.explaining import nearest


def check_training(training: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with a section of ``transformers.TrainingArguments``, by name, type and range."""
    from tutelage.training import DistillationArguments

    fields = {field.name: field for field in dataclasses.fields(DistillationArguments) if field.init}
    problems: list[str] = []
    for key, value in training.items():
        if key not in fields:
            near = f"; did you mean {_ALIASES[key]!r}?" if key in _ALIASES else nearest(str(key), list(fields))
            problems.append(f"{where}.{key} is not an argument of transformers.TrainingArguments{near}")
            continue
        problem = _type_problem(value, _resolved(fields[key].type))
        if problem is not None:
            problems.append(f"{where}.{key} is {value!r}, expected {problem}")
    for key, (least, strict) in _RANGES.items():
        value = training.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if (value <= least if strict else value < least) or not math.isfinite(value):
            problems.append(f"{where}.{key} is {value}, expected {'more than' if strict else 'at least'} {least}")
    return problems


#: What people call them elsewhere.
_ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "steps": "max_steps",
    "scheduler": "lr_scheduler_type",
}

_RANGES: dict[str, tuple[float, bool]] = {
    "per_device_train_batch_size": (1, False),
    "per_device_eval_batch_size": (1, False),
    "gradient_accumulation_steps": (1, False),
    "num_train_epochs": (0, True),
    "learning_rate": (0, True),
    "max_grad_norm": (0, False),
    "weight_decay": (0, False),
}


def _resolved(annotation: Any) -> Any:
    # `from __future__ import annotations` leaves the types of some fields as text.
    if isinstance(annotation, str):
        return {"int": int, "float": float, "bool": bool, "str": str}.get(annotation)
    return annotation


def _type_problem(value: Any, expected: Any) -> str | None:
    """What a plain value should have been, or None where it fits or nothing definite is known."""
    options = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if not options or any(option not in (*plain, type(None)) for option in options):
        return None
    if value is None:
        return None if type(None) in options else " or ".join(plain[option] for option in options)
    allowed = set(options) | ({int} if float in options else set())
    return None if type(value) in allowed else " or ".join(plain[option] for option in options if option in plain)

"""What is wrong with a config, in the config's own words: the key, what was got, what was expected, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

#: What a missing section or key looks like when it is there.
EXAMPLES: Mapping[str, str] = {
    "data": "data: {source: digits, splits: {validation: 0.15, test: 0.2}}",
    "data.source": "source: digits",
    "teacher": 'teacher: {model: {hub: folder-or-id}}, or with "training" where this run is to train it',
    "teacher.model": 'model: {python: "models.py:teacher"}',
    "assistants": 'assistants: [{name: middle, model: {python: "models.py:middle"}}]',
    "student": 'student: {model: {python: "models.py:student"}}',
    "labels": "labels: {form: sampled, draws: 64, temperature: 1}",
    "objective": "objective: [{term: kl, temperature: 1, weight: 0.9}, {term: cross_entropy, weight: 0.1}]",
    "training": "training: {num_train_epochs: 60, per_device_train_batch_size: 64, learning_rate: 2e-3}",
}

#: What pydantic finds wrong with a value whose type is right.
_OF_ITS_TYPE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short", "finite_number")

#: Pydantic's words for a type, and a config's.
_WORDS = {
    "a valid dictionary": "a mapping of keys to values",
    "a valid dictionary or instance of": "a mapping of keys to values",
    "a valid list": "a list",
    "a valid string": "a text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a finite number": "a finite number",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "List should have at least 1 item after validation, not 0": "at least one item",
}


def explain(
    details: Iterable[ErrorDetails], root: type[BaseModel], examples: Mapping[str, str] = EXAMPLES, *, within: str = ""
) -> list[str]:
    """One line for each key that is wrong. The alternatives of a key that may be of several types are put together, unless the value
    is of one of them and only too small or too large.

    Args:
        details: what pydantic found.
        root: the section that was checked.
        examples: what a missing key looks like when it is there, by its dotted name.
        within: where that section stands, for the keys' names.
    """
    lines: dict[str, str] = {}
    expected: dict[str, dict[str, bool]] = {}
    for detail in details:
        location = [part for part in detail["loc"] if not (isinstance(part, str) and _is_union_tag(part))]
        dotted = ".".join(str(part) for part in (*([within] if within else []), *location))
        kind, value = detail["type"], detail["input"]
        if kind == "extra_forbidden":
            lines[dotted] = f"unknown key {dotted!r}{nearest(str(location[-1]), _keys_at(location[:-1], root))}"
        elif kind == "missing":
            example = f"; write for example  {examples[dotted]}" if dotted in examples else ""
            lines[dotted] = f"the key {dotted!r} is missing{example}"
        elif kind == "invalid_key":
            lines[dotted] = f"the key {dotted!r} is no text: put it in quotes, or name one of the known keys"
        else:
            words = expected.setdefault(dotted, {})
            words[_in_plain_words(detail["msg"])] = kind in _OF_ITS_TYPE
            of_its_type = [said for said, right in words.items() if right]
            lines[dotted] = f"{dotted} is {_shown(value)}, expected {' or '.join(of_its_type or words)}"
    return list(lines.values())


def nearest(key: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` for the known key nearest to ``key``; all of them where none is near and they are few."""
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]!r}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 20 else ""


def together(where: str, problems: Sequence[str]) -> str:
    """One message with every problem found."""
    return f"{where}: {problems[0]}" if len(problems) == 1 else f"{where}:\n  " + "\n  ".join(problems)


def _in_plain_words(message: str) -> str:
    for given, plain in _WORDS.items():
        if given in message:
            message = message.removeprefix("Input should be ").replace(given, plain)
            return message.partition(" instance of ")[0].removesuffix(" or")
    return message.removeprefix("Input should be ")


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _is_union_tag(part: str) -> bool:
    return part in ("int", "str", "float", "bool") or part.startswith(
        ("list[", "dict[", "literal[", "constrained-", "function-")
    )


def _keys_at(location: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    section: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list: the annotation's inner section is its own
        if section is None:
            return []
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        section = _section_in(fields[part].annotation) if part in fields else None
    return [field.alias or name for name, field in section.model_fields.items()] if section is not None else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The one section that an annotation speaks of, such as ``list[Section] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [section for section in map(_section_in, get_args(annotation)) if section is not None]
    return found[0] if len(found) == 1 else None

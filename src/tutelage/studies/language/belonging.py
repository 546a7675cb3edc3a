"""Whose a folder is: a study that is not the one that left its arms there is refused before it writes anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import CheckpointError
from tutelage.studies.arm import RECORD
from tutelage.studies.language.lessons import held_out_facts
from tutelage.studies.language.recording import TEACHER

if TYPE_CHECKING:
    from tutelage.studies.language.work import Work

#: Facts that are no key of a config, in words.
_IN_WORDS = {
    "compared with": "the teacher's weights or answers",
    "test_set": "the test split's examples, as the student sees them",
    "validation_set": "the validation split's examples, as the student sees them",
}
#: Of many differences, so many are told.
_TOLD = 8

Json = dict[str, Any]


def expect_own_folder(work: Work) -> None:
    """Find out whether the arms that a folder holds are this study's, as far as can be told before any is asked for.

    Raises:
        CheckpointError: they are of other data, views, models or another teacher; the message names what differs.
    """
    path = work.folder / TEACHER / RECORD
    then = _recorded(path)
    if then is None:
        return
    now: Json = {**work.study.fingerprint, **held_out_facts(work.study.data), "compared with": work.teacher_name}
    # completions that are yet to be written are no facts before they are there
    unknown = {f"{name}_set" for name, split in work.study.data.splits.items() if split.set is None}
    now = json.loads(json.dumps(now))
    changed = sorted(
        (key for key in {*then, *now} - unknown if then.get(key) != now.get(key)),
        key=lambda key: (key in _IN_WORDS, key),
    )
    if not changed:
        return
    # equal settings explain a difference in what they led to
    keys = [key for key in changed if key not in _IN_WORDS] or changed
    lines = [f"  {_IN_WORDS.get(key, key)}: {_said(then, key)} then, {_said(now, key)} now" for key in keys[:_TOLD]]
    lines += [f"  and {len(keys) - _TOLD:,} more"] if len(keys) > _TOLD else []
    raise CheckpointError(
        f"{work.folder} holds another study, which differs from this one in:\n"
        + "\n".join(lines)
        + "\nNothing was written. Going on "
        "would compare students that were taught or tested differently. Name another folder (--out), or restore the settings"
    )


def _recorded(path: Path) -> Json | None:
    """What decided a folder's arms; None where there are none, or a damaged record that is told of when it is read."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # once a fact among them: what is asked of a model that is done decides none of its weights
    return {key: fact for key, fact in facts.items() if key != "measured"}


def _said(facts: Mapping[str, Any], key: str) -> str:
    return repr(facts[key]) if facts.get(key) is not None else "nothing"

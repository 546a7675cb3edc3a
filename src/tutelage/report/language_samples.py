"""What each model writes after the same prompts, side by side, with the words marked in which it differs from the teacher."""

from __future__ import annotations

import difflib
import re
from typing import Any

from markupsafe import Markup

from tutelage.report.charts import join, key_mark
from tutelage.report.language_words import TEACHER, arms_of
from tutelage.report.record import Record, mapping, records, text
from tutelage.report.words import Arm

View = dict[str, Any]

#: Texts of more words are not compared: the time that takes grows with their square.
_MOST_WORDS = 600
#: Texts less alike than this are said to differ; to mark nearly every word shows nothing.
_ALIKE = 0.35
#: Texts of more characters are folded.
_LONG = 600


def samples_section(result: Record) -> list[View]:
    """The recorded prompts, each with the reference and the answer of every model that gave one."""
    arms = arms_of(result)
    views: list[View] = []
    for index, sample in enumerate(records(result.get("samples"))):
        given = mapping(sample.get("answers"))
        answers = {key: given[key] for key in [*arms, *given] if isinstance(given.get(key), str)}
        together: dict[str, list[str]] = {}
        for key, answer in answers.items():
            together.setdefault(answer, []).append(key)
        reference = text(sample.get("reference"))
        rows = [
            {
                "names": [_name(key, arms) for key in keys],
                **against(answer, None if TEACHER in keys else answers.get(TEACHER), reference),
            }
            for answer, keys in together.items()
        ]
        prompt, full = text(sample.get("prompt")), text(sample.get("teacher_prompt"))
        views.append(
            {
                "number": index + 1,
                "prompt": prompt,
                "teacher_prompt": added(full, prompt) if full and full != prompt else None,
                "folded": len(full) > _LONG,
                "reference": reference,
                "answers": rows,
                "missing": [arms[key][0].phrase for key in arms if key not in answers],
            }
        )
    return views


def _name(key: str, arms: dict[str, tuple[Arm, Record]]) -> View:
    if key not in arms:
        return {"name": key.replace("_", " "), "key": ""}
    arm = arms[key][0]
    return {"name": arm.name, "key": key_mark(arm.slot, arm.shape)}


def against(answer: str, model: str | None, reference: str) -> View:
    """An answer with the words marked that the teacher's does not have there, and what can be said of it in a word."""
    same = bool(reference.strip()) and answer.strip() == reference.strip()
    tag = "as the reference" if same else ""
    if not answer.strip():
        return {"text": Markup('<i class="quiet">(nothing)</i>'), "tag": tag, "same": same}
    found = marked(answer, model) if model is not None else answer
    return {
        "text": answer if found is None else found,
        "tag": tag or ("other words" if found is None else ""),
        "same": same,
    }


def added(full: str, prompt: str) -> Markup | str:
    """The teacher's prompt with the words marked that the student does not see."""
    found = marked(full, prompt, least=0.0)
    return full if found is None else found


def marked(own: str, other: str, least: float = _ALIKE) -> Markup | None:
    """A text with the words marked that another does not have at that place; None where they cannot or need not be compared.

    Args:
        own: the text.
        other: what it is compared with.
        least: the share of words in common from which on words are marked.
    """
    first, second = _words(own), _words(other)
    if max(len(first), len(second)) > 2 * _MOST_WORDS:
        return None
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    if matcher.ratio() < least:
        return None
    parts: list[Markup] = []
    for kind, start, end, _, _ in matcher.get_opcodes():
        piece = "".join(first[start:end])
        if kind == "equal" or not piece.strip():
            parts.append(Markup("{}").format(piece))
        else:
            core = piece.strip()
            before, after = piece.split(core, 1)
            parts.append(Markup("{}<mark>{}</mark>{}").format(before, core, after))
    return join(parts)


def _words(text_: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]+", text_)

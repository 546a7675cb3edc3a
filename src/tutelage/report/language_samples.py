"""What each model writes after the same prompts, side by side, with the words marked in which it differs from the teacher."""

from __future__ import annotations

import difflib
import re
from typing import Any

from markupsafe import Markup

from tutelage.report.charts import join, key_mark
from tutelage.report.language_words import TEACHER, arms_of
from tutelage.report.record import Record, mapping, records, text

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
        model = answers.get(TEACHER)
        rows: list[View] = []
        for key, answer in answers.items():
            arm = arms[key][0] if key in arms else None
            row: View = {
                "name": arm.name if arm else key.replace("_", " "),
                "key": key_mark(arm.slot, arm.shape) if arm else "",
                **against(answer, None if key == TEACHER else model),
            }
            rows.append(row)
        prompt, full = text(sample.get("prompt")), text(sample.get("teacher_prompt"))
        reference = text(sample.get("reference"))
        views.append(
            {
                "number": index + 1,
                "prompt": prompt,
                "teacher_prompt": added(full, prompt) if full and full != prompt else None,
                "folded": len(full) > _LONG,
                "reference": against(reference, None)["text"] if reference else None,
                "answers": rows,
                "missing": [arms[key][0].phrase for key in arms if key not in answers],
            }
        )
    return views


def against(answer: str, model: str | None) -> View:
    """An answer with the words marked that the teacher's does not have there, and in a word how alike they are."""
    if not answer.strip():
        alike = model is not None and not model.strip()
        return {
            "text": Markup('<i class="quiet">(nothing)</i>'),
            "tag": "as the teacher" if alike else "",
            "same": alike,
        }
    if model is None:
        return {"text": answer, "tag": "", "same": False}
    if answer == model:
        return {"text": answer, "tag": "as the teacher", "same": True}
    found = marked(answer, model)
    if found is None:
        return {"text": answer, "tag": "other words", "same": False}
    return {"text": found, "tag": "", "same": False}


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
            parts.append(Markup("<mark>{}</mark>").format(piece))
    return join(parts)


def _words(text_: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]+", text_)

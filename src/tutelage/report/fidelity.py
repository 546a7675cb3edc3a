"""The section on fidelity: how closely the student follows its teacher, and the examples on which it fails where the teacher did not."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Any

from tutelage.report.charts import key_mark
from tutelage.report.record import Record, mapping, number, records, text
from tutelage.report.sections import CONTROLS, FIDELITY_METRICS, arms_of, metric_cells
from tutelage.report.words import arm_named, plural

# Only pictures that the file itself holds: an address would be fetched by whoever opens the page.
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,([A-Za-z0-9+/]+={0,2})")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Pictures at most this wide and high, in pixels, are enlarged with their pixels kept square.
SMALL = 64


def picture(value: object) -> str | None:
    """The picture if it is a base64 ``data:`` URI of a bitmap, else None."""
    return value if isinstance(value, str) and _PICTURE.fullmatch(value) else None


def is_small(uri: str) -> bool:
    """Whether a picture is a PNG of at most ``SMALL`` pixels a side."""
    found = _PICTURE.fullmatch(uri)
    if found is None:
        return False
    try:
        head = base64.b64decode(found[1][:32], validate=True)
    except (binascii.Error, ValueError):
        return False
    if len(head) < 24 or not head.startswith(_PNG_SIGNATURE):
        return False
    width, height = struct.unpack(">II", head[16:24])
    return max(width, height) <= SMALL


def said(who: str, answer: object, confidence: object) -> str:
    """``teacher said 3 (98%)``."""
    sure = number(confidence)
    return f"{who} said {text(answer, 'nothing')}" + ("" if sure is None else f" ({100 * sure:.0f}%)")


def flip(example: Record) -> dict[str, Any]:
    """One negative flip: the picture or the text, and who said what."""
    label = text(example.get("label"), "unknown")
    teacher = said("teacher", example.get("teacher"), example.get("teacher_confidence"))
    student = said("student", example.get("student"), example.get("student_confidence"))
    image = picture(example.get("image"))
    words = text(example.get("text")) or None
    return {
        "image": image,
        "small": image is not None and is_small(image),
        "alt": f"image labelled {label}; {teacher}, {student}",
        "text": words,
        "label": label,
        "teacher": teacher,
        "student": student,
        "id": text(example.get("id"), "no id"),
    }


def fidelity(result: Record) -> dict[str, Any]:
    """Agreement, KL and flips of every student, and the negative flips that the record shows."""
    students = [
        (arm, record)
        for arm, record in arms_of(result)
        if arm.key != "teacher"
        and any(number(mapping(record.get("mean")).get(m)) is not None for m in FIDELITY_METRICS)
    ]
    table = [
        {"arm": arm, "key": key_mark(arm.slot, arm.shape), "cells": metric_cells(record, FIDELITY_METRICS)}
        for arm, record in students
    ]
    found = mapping(mapping(result.get("evidence")).get("flips"))
    examples = [flip(example) for example in records(found.get("examples"))]
    total = number(found.get("total"))
    whose = f"{arm_named(text(found.get('arm'), 'kd')).phrase}, seed {text(found.get('seed'), 'unknown')}"
    if not found:
        summary = "The record holds no examples of negative flips."
    elif total == 0:
        summary = f"No negative flips: wherever the teacher was right, so was {whose}."
    elif not examples:
        summary = f"{plural(int(total), 'negative flip') if total else 'Negative flips'} of {whose}; the record shows none of them."
    else:
        shown = f"{len(examples)} of {int(total):,}" if total else str(len(examples))
        summary = f"Showing {shown} test examples that the teacher got right and {whose}, got wrong."
    controls = any(arm.key in CONTROLS for arm, _ in students)
    return {"table": table, "examples": examples, "summary": summary, "controls": controls}

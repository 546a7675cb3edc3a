"""What the page of a sentence encoder's study shows, ready for its template."""

from __future__ import annotations

from typing import Any

from tutelage.report.embedding_parts import (
    arms_section,
    cost_section,
    curves_section,
    surgery_section,
    tasks_section,
    transfer_section,
)
from tutelage.report.embedding_words import headline, named_in, worst_said
from tutelage.report.embedding_worth import worth_section
from tutelage.report.gate_words import because
from tutelage.report.made import made, page_title, run_facts
from tutelage.report.record import Record, mapping, text
from tutelage.report.sections import gates

#: The ``task`` of such a study's ``result.json``.
EMBEDDING = "embedding"


def embedding_view(result: Record) -> dict[str, Any]:
    """Everything that ``embedding.html.j2`` shows of a record."""
    return {
        "title": page_title(result, "Distillation of a sentence encoder"),
        "version": text(result.get("tutelage"), "unknown version"),
        "facts": run_facts(result),
        "decision": text(mapping(result.get("verdict")).get("decision")),
        "headline": headline(result),
        "worst": worst_said(result),
        "because": because(result),
        "gates": gates(mapping(result.get("verdict")), named_in(result)),
        "tasks": tasks_section(result),
        "arms": arms_section(result),
        "worth": worth_section(result),
        "cost": cost_section(result),
        "surgery": surgery_section(result),
        "transfer": transfer_section(result),
        "curves": curves_section(result),
        "made": made(result),
    }

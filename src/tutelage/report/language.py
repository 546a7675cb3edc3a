"""What the page of a language study shows, ready for its template."""

from __future__ import annotations

from typing import Any

from tutelage.report.gate_words import because
from tutelage.report.language_arms import gap_section, seeds_in_all, side_by_side, worth
from tutelage.report.language_parts import (
    context_section,
    cost_section,
    curves_section,
    generated_section,
    on_policy_lead,
    stores_section,
    transfer_section,
)
from tutelage.report.language_samples import samples_section
from tutelage.report.language_words import headline, metrics_of, what_it_saves
from tutelage.report.made import made, page_title, run_facts
from tutelage.report.record import Record, mapping, text
from tutelage.report.sections import gates

#: The ``task`` of such a study's ``result.json``.
LANGUAGE = "language_model"


def language_view(result: Record) -> dict[str, Any]:
    """Everything that ``language.html.j2`` shows of a record."""
    facts = run_facts(result)
    trained = seeds_in_all(result)
    return {
        "title": page_title(result, "Distillation of a language model"),
        "version": text(result.get("tutelage"), "unknown version"),
        "facts": [*facts[:2], trained, *facts[2:]] if trained else facts,
        "decision": text(mapping(result.get("verdict")).get("decision")),
        "headline": headline(result),
        "saves": what_it_saves(result),
        "because": because(result),
        "gates": gates(mapping(result.get("verdict")), metrics_of(result)),
        "gap": gap_section(result),
        "arms": side_by_side(result),
        "on_policy": on_policy_lead(result),
        "worth": worth(result),
        "context": context_section(result),
        "samples": samples_section(result),
        "cost": cost_section(result),
        "generated": generated_section(result),
        "stores": stores_section(result),
        "transfer": transfer_section(result),
        "curves": curves_section(result),
        "made": made(result),
    }

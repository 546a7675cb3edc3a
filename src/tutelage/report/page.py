"""Makes the page and writes it beside the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError
from tutelage.report import diagnosis, sections
from tutelage.report.chain import chain_section
from tutelage.report.embedding import EMBEDDING, embedding_view
from tutelage.report.fidelity import fidelity
from tutelage.report.gate_words import because
from tutelage.report.knowledge import check_inspection, knowledge_section, read_inspection
from tutelage.report.labels import labels_section
from tutelage.report.language import LANGUAGE, language_view
from tutelage.report.made import made, run_facts
from tutelage.report.members import members_section
from tutelage.report.pages import read_json, render, write_page
from tutelage.report.peers import peers_section
from tutelage.report.record import Record, check_layout, check_shipped, mapping, text
from tutelage.report.shipped import shipped_section
from tutelage.report.stage import stage_section
from tutelage.report.surgery import surgery_section
from tutelage.report.unseen import unseen
from tutelage.report.words import against_teacher, headline

RECORD = "result.json"
SHIPPED = "shipped.json"
PAGE = "report.html"


def render_report(
    result: Mapping[str, Any], shipped: Mapping[str, Any] | None = None, inspected: Mapping[str, Any] | None = None
) -> str:
    """One self-contained HTML page that says what a teacher was worth and whether to ship the student.

    Everything on it comes from the records; it loads nothing from anywhere and needs no scripts. What they lack
    is named as missing. A language model's or an encoder's page is made of
    ``result.json`` alone.

    Args:
        result: the content of ``result.json``.
        shipped: the content of ``shipped.json``, where something was exported.
        inspected: the content of ``inspect.json``, where the teacher was inspected.

    Returns:
        The page, HTML 5.

    Raises:
        DataError: a record is not that of a finished run, of an export or of an inspection.
    """
    checked = None if shipped is None else check_shipped(shipped, "the record of what was exported")
    known = None if inspected is None else check_inspection(inspected, "the record of the inspected teacher")
    return _render(check_layout(result, "this record"), checked, known)


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` from the records in a run's folder; an older page is replaced whole or not at all.

    Args:
        run_dir: the output folder of a run: ``result.json``, once something was exported ``shipped.json``, and once its teacher was
            inspected ``inspect.json``.

    Returns:
        The page's path.

    Raises:
        ConfigError: the folder holds no ``result.json``.
        DataError: one of them is damaged, or not the record of a finished run, of an export or of an inspection.
    """
    return write_page(Path(run_dir) / PAGE, _render(*read_records(run_dir), read_inspection(run_dir)))


def read_records(run_dir: Path) -> tuple[Record, Record | None]:
    """``result.json`` and, where something was exported, ``shipped.json`` of a run's folder.

    Raises:
        ConfigError: the folder holds no ``result.json``.
        DataError: one of the two is damaged, or not the record of a finished run or of an export.
    """
    source, exported = Path(run_dir) / RECORD, Path(run_dir) / SHIPPED
    try:
        result = read_json(source, "run `tutelage run` again with the same config, which writes it anew")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"no {RECORD} in {run_dir}: expected the output folder of a finished run. There is nothing to make a page "
            "from; give the folder that `tutelage run` wrote to, or run it again with the same config to finish it"
        ) from None
    checked = check_layout(result, str(source))
    try:
        shipped = read_json(exported, "run `tutelage export` and `tutelage check` again, which write it anew")
    except FileNotFoundError:
        return checked, None
    return checked, check_shipped(shipped, str(exported))


def _render(result: Record, shipped: Record | None, inspected: Record | None) -> str:
    if text(result.get("task")) == LANGUAGE:
        return render("language.html.j2", language_view(result))
    if text(result.get("task")) == EMBEDDING:
        return render("embedding.html.j2", embedding_view(result))
    return render("template.html.j2", _view(result, shipped, inspected))


def _view(result: Record, shipped: Record | None, inspected: Record | None) -> dict[str, Any]:
    decision = text(mapping(result.get("verdict")).get("decision"))
    return {
        "title": text(result.get("title"), "Distillation run"),
        "version": text(result.get("tutelage"), "unknown version"),
        "facts": run_facts(result),
        "decision": decision,
        "headline": headline(result),
        "against_teacher": against_teacher(result),
        "because": because(result),
        "gates": sections.gates(mapping(result.get("verdict"))),
        "shipped": None if shipped is None else shipped_section(result, shipped),
        "arms": sections.side_by_side(result),
        "worth": sections.worth(result),
        "knowledge": None if inspected is None else knowledge_section(inspected),
        "members": members_section(result),
        "chain": chain_section(result),
        "peers": peers_section(result),
        "classes": diagnosis.classes(result),
        "unseen": unseen(result),
        "calibration": diagnosis.calibration(result),
        "fidelity": fidelity(result),
        "cost": sections.cost(result),
        "surgery": surgery_section(result),
        "stage": stage_section(result),
        "labels": labels_section(result),
        "curves": diagnosis.curves(result),
        "made": made(result),
    }

"""What is written for people: the page, a Markdown summary, a model card, from the records alone, without torch or a network."""

from tutelage.report.card import model_card
from tutelage.report.page import read_records, render_report, write_report
from tutelage.report.summary import markdown_summary
from tutelage.report.sweep import render_sweep, write_sweep_page

__all__ = [
    "markdown_summary",
    "model_card",
    "read_records",
    "render_report",
    "render_sweep",
    "write_report",
    "write_sweep_page",
]

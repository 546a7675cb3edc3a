"""The page: one self-contained HTML file made from ``result.json`` alone, without torch and without a network."""

from tutelage.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]

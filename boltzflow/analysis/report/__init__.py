"""The HTML report of an ensemble: one self-contained page."""

from boltzflow.analysis.report.page import report

__all__ = ["report"]

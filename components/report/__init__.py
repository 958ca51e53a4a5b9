"""The report of a run: one self-contained HTML page, and the same figures as a table in the terminal.

Everything is computed from plain dictionaries that the stages left behind; nothing here trains, attacks or opens a
tracking server. Importing this package loads the standard library only.
"""

from __future__ import annotations

from components.report.data import ReportStage
from components.report.page import build_report
from components.report.terminal import terminal_table

__all__ = ["ReportStage", "build_report", "terminal_table"]

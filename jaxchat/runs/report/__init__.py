"""The report of a run, for people (`report.md`, `report.html`) and as data (`report.json`)."""

from jaxchat.runs.report.content import missing_notes
from jaxchat.runs.report.files import (
    FILES,
    final_summary,
    gather_run,
    read_file,
    read_report,
    summary,
    write_report,
    write_run,
)
from jaxchat.runs.report.gather import FORMAT, make_report
from jaxchat.runs.report.metrics import core_record

__all__ = (
    "FILES",
    "FORMAT",
    "core_record",
    "final_summary",
    "gather_run",
    "make_report",
    "missing_notes",
    "read_file",
    "read_report",
    "summary",
    "write_report",
    "write_run",
)

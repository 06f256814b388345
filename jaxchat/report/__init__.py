"""The report of a run, for people (`report.md`, `report.html`) and as data (`report.json`)."""

from jaxchat.report.files import (
    FILES,
    farewell,
    gather_run,
    read_report,
    summary,
    write_report,
    write_run,
)
from jaxchat.report.gather import FORMAT, make_report

__all__ = (
    "FILES",
    "FORMAT",
    "farewell",
    "gather_run",
    "make_report",
    "read_report",
    "summary",
    "write_report",
    "write_run",
)

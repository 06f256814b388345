"""The report of a run, for people (`report.md`, `report.html`) and as data (`report.json`)."""

"""`jaxchat report`: a run's report as it stands now, or two runs compared.

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxchat.cli.args import Parser
from jaxchat.errors import ConfigError
from jaxchat.paths import atomic_open, home
from jaxchat.runs import run_dir


def add_report(parser: Parser) -> None:
    """The options of `jaxchat report`."""
    parser.description = (
        "Makes report.md, report.html and report.json of the stages a run has, and prints the "
        "metrics. With two runs: compares them."
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="name of a run, its folder, or a report.json (default: the last run)",
    )
    parser.option("--run", text="as RUN: name of the run")
    parser.option("--out", Path, "FOLDER", "of a comparison (default: the second run's)")
    parser.set_defaults(run_command=report_command)


def report_command(args: argparse.Namespace) -> int:
    """Makes one report or a comparison; prints it and where it is."""
    named: list[str | None] = [*args.runs, *([args.run] if args.run else [])]
    if len(named) > 2:
        raise ConfigError(f"{len(named)} runs are named; a report is of one, or compares two.")
    if args.out is not None and len(named) != 2:
        raise ConfigError("--out is the folder of a comparison; name two runs.")
    import jax

    jax.config.update("jax_platforms", "cpu")  # schedules are computed; a GPU may be training
    root = home(args.home)
    if len(named) == 2:
        return _compare([_path(root, name) for name in named], args.out)
    from jaxchat.runs.report.content import missing_notes
    from jaxchat.runs.report.files import summary, write_run

    run = _path(root, named[0] if named else None)
    if run.is_file():
        raise ConfigError(f"{run} is a report already; name a run to make its report.")
    made = write_run(run)
    if made["metrics"]:
        print(summary(made) + "\n")
    for line in missing_notes(made):
        print(line)
    print(run / "report.html")
    print(run / "report.md")
    return 0


def _path(root: Path, name: str | None) -> Path:
    """A run's folder, or a report.json: by the run's name, or as a path."""
    path = Path(name or "")
    if name and (path.is_file() or (path / run_dir.CONFIG).is_file()):
        return path
    return run_dir.find(root, name)


def _compare(paths: Sequence[Path], out: Path | None) -> int:
    from jaxchat.runs.report import compare
    from jaxchat.runs.report.files import gather_run, read_report
    from jaxchat.runs.tables import table

    a, b = (read_report(p) if p.is_file() else gather_run(p) for p in paths)
    compared = compare.compare(a, b)
    folder = out or (paths[1].parent if paths[1].is_file() else paths[1])
    stem = f"compare_{a['run']['name']}_{b['run']['name']}"
    written = {
        folder / f"{stem}.md": compare.render_markdown(compared),
        folder / f"{stem}.html": compare.render_page(a, b),
    }
    for path, text in written.items():
        with atomic_open(path) as file:
            file.write(text)
    for rows in (compare.metric_rows(compared), compare.setting_rows(compared, "settings")):
        if len(rows) > 1:
            print("\n".join(table(rows)) + "\n")
    for path in reversed(written):
        print(path)
    return 0

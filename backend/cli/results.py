"""What `evaluate` and `lab bench` do with a result: one table or one JSON object, a file and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import Interrupted
from ..reports.figures import interval_text, row_counts, text_tables, write_figures
from ..reports.templates import PAGE
from ..storage.outputs import check_made, claim, set_aside, write_made
from ..storage.records import installed_versions
from . import terminal

RESULT = "result.json"
# What evaluations and benchmarks write
NAMES = (
    RESULT,
    PAGE,
    "partial.jsonl",
    "partial-settings.json",
    "pictures",
    "pictures.jsonl",
    "rewrites.jsonl",
    "scores.jsonl",
)


@contextmanager
def claimed(command: str, out: Path | None) -> Iterator[Path]:
    """Hold the folder of a result while `command` writes to it; None: `out/` and the command. As `claim`."""
    folder = out or Path("out") / command.replace(" ", "-")
    with claim(folder, command, NAMES):
        check_made(folder, folder / RESULT, folder / PAGE)
        yield folder


@contextmanager
def progress_bars(as_json: bool, out: Path) -> Iterator[Callable[[str, int, int], None]]:
    """An evaluation's progress on stderr, library output too under --json; a stop says where to go on."""
    with terminal.quiet_stdout(as_json), terminal.stage_progress() as start:
        try:
            yield start("")
        except (KeyboardInterrupt, Interrupted) as stop:
            raise Interrupted(f"stopped; what is done is kept in {out}, the same command goes on") from stop


def finish(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """Add versions, write `result.json` and the page, print the table or the object.

    An earlier result that is not the same is moved aside with its page.
    """
    result = {**result, "versions": installed_versions()}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if (out / RESULT).exists() and (out / RESULT).read_bytes() != text.encode():
        terminal.note(f"another result was there; it is kept in {set_aside(out, (PAGE, RESULT))}")
    write_made(out, out / RESULT, text)
    page = write_figures(out, result)
    if as_json:
        terminal.print_json(result)
        return
    _print_rows(result["rows"])
    for table in text_tables(result):
        terminal.print_table(table["title"], table["columns"], table["rows"], numbers=table["columns"][1:])
    terminal.out().print(f"open [bold]{page}[/bold]", soft_wrap=True)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    costs = list(dict.fromkeys(name for row in rows for name in row_counts(row)))
    gains = any(row.get("gain") for row in rows)
    kept = any(row.get("gain_kept") for row in rows)
    columns = ["", "overall [95 %]", *(name.replace("_", " ") for name in costs)]
    columns += ["gain, paired"] * gains + ["over"] * gains + ["gain kept"] * kept
    table = []
    for row in rows:
        name = row["name"] + (f" ({row['judge']})" if row.get("judge") else "")
        cells = [name, interval_text(row["overall"], 3)]
        counts = row_counts(row)
        cells += [f"{counts[cost]:,g}" if cost in counts else "" for cost in costs]
        if gains:
            gain = row.get("gain") or {}
            cells += [interval_text(gain.get("interval"), 3, "+"), gain.get("over", "")]
        if kept:
            cells.append(interval_text(row.get("gain_kept"), 3))
        table.append(cells)
    terminal.print_table(None, columns, table, numbers=columns[1:])
    if tasks:
        by_task = [(row["name"], *(interval_text(row["tasks"].get(task)) for task in tasks)) for row in rows]
        columns = ["", *(task.replace("_", " ") for task in tasks)]
        terminal.print_table("by task", columns, by_task, numbers=columns[1:])

"""What goes to which stream: results to stdout, everything else (notes, progress, errors) to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.errors import Interrupted, RepriseError
from ..storage.outputs import MARK


def out() -> Console:
    # A pipe has no width; rich's 80 would fold what a program or a log has room for.
    width = None if sys.stdout.isatty() else 160
    return Console(file=sys.stdout, highlight=False, width=width)


def err() -> Console:
    return Console(file=sys.stderr, highlight=False)


def note(text: str) -> None:
    """One dim line on stderr."""
    err().print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)


@contextlib.contextmanager
def quiet_stdout(quiet: bool) -> Iterator[None]:
    """Sends what libraries print to stderr, so that stdout holds the result and nothing else."""
    if not quiet:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()
) -> None:
    """A table on stdout; the columns named in `numbers` are set to the right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    out().print(table)


@contextlib.contextmanager
def keeping(where: str) -> Iterator[None]:
    """Around drawing that the same command goes on with: what stops it is told where the pictures are."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        raise Interrupted(f"stopped; what was drawn is kept in {where}, the same command goes on") from stop
    except RepriseError:
        if Path(where).is_dir() and any(path.name != MARK for path in Path(where).iterdir()):
            note(f"what was drawn is kept in {where}, the same command goes on")
        raise


@contextlib.contextmanager
def stage_progress() -> Iterator[Callable[[str], Callable[[str, int, int], None]]]:
    """A progress bar on stderr. Gives a function that starts a prompt by its title and gives that
    prompt's `progress(stage, done, total)`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def start(title: str) -> Callable[[str, int, int], None]:
            for task in bars.task_ids:
                bars.remove_task(task)
            short = title if len(title) <= 48 else title[:47] + "…"
            task = bars.add_task(escape(short), total=None)

            def progress(stage: str, done: int, total: int) -> None:
                bars.update(
                    task, description=f"[bold]{stage:<8}[/bold]{escape(short)}", completed=done, total=total
                )

            return progress

        yield start

"""What goes to which stream: results to stdout, everything else (notes, progress, errors) to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

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


def print_json_list(values: Iterable[Any]) -> None:
    """A JSON array on stdout, of values that are made one by one."""
    between = "[\n"
    for value in values:
        sys.stdout.write(between + json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
        between = ",\n"
    sys.stdout.write("\n]\n")


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


Progress = Callable[[str, int, int], None]
"""The stage, and how much of it is done, of how much."""
Start = Callable[[str], Progress]
"""Starts a prompt by its title; gives its progress."""


class Pace(Protocol):
    """How far a run of several prompts is."""

    total: int

    @property
    def done(self) -> int: ...

    def progress(self) -> str: ...


@contextlib.contextmanager
def stage_progress(pace: Pace | None = None) -> Iterator[Start]:
    """Progress on stderr: bars in a terminal; elsewhere, with `pace`, a line once in a while."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = err()
    tell = rare_notes()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        whole = bars.add_task("", total=pace.total) if pace else None
        stage = bars.add_task("", total=None)

        def start(title: str) -> Callable[[str, int, int], None]:
            if pace is not None and whole is not None:
                bars.update(whole, description=pace.progress(), completed=pace.done)
                if not console.is_terminal:
                    tell(pace.progress())
            short = escape(title if len(title) <= 48 else title[:47] + "…")
            bars.reset(stage, description=short, total=None)

            def progress(name: str, done: int, total: int) -> None:
                bars.update(stage, description=f"[bold]{name:<8}[/bold]{short}", completed=done, total=total)

            return progress

        yield start


def few_notes(most: int) -> Callable[[str], None]:
    """As `note`; after `most` lines it says that there are more, and then nothing."""
    count = 0

    def tell(text: str) -> None:
        nonlocal count
        count += 1
        if count <= most:
            note(text)
        elif count == most + 1:
            note("…and more of this kind")

    return tell


def rare_notes() -> Callable[[str], None]:
    """As `note`, for a log: once a minute in the first hour, then ever more rarely."""
    begun = told = time.monotonic()

    def tell(text: str) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= max(60.0, (now - begun) / 60):
            told = now
            note(text)

    return tell

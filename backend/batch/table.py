"""Files of prompts: text, CSV, JSON lines, Parquet. Each row is a run, or several; each column an input."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, UnknownName, first_line
from ..core.parsing import parse_json
from ..storage.files import read_text
from ..storage.prompt_files import check_prompt, read_prompts

MOST_COLUMNS = 200
DELIMITERS = (",", ";", "\t")  # of CSV; where a comma is in numbers, spreadsheets write semicolons
Value = str | int | float | bool


@dataclass(frozen=True)
class Table:
    """The rows of a file, column -> value; a cell that is empty is left out. `columns` in their order."""

    source: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, Value], ...]

    def place(self, number: int) -> str:
        """Where row `number` (from 0) is, for messages."""
        return f"{self.source}, row {number + 1}"


def read_table(path: Path, note: Callable[[str], None]) -> Table:
    """The rows of a .txt, .csv, .tsv, .jsonl or .parquet file. `note` is told what was skipped.

    Raises BadInput for a file that cannot be read or holds no row, and for a value that is no text and no
    number, with its place.
    """
    readers = {".txt": _text, ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    kind = path.suffix.lower()
    if kind == ".txt":
        table = _text(path, note)
    elif kind in readers:
        table = _checked(path, readers[kind](path, note))
    else:
        raise UnknownName(f"kind of prompt file ({path}):", kind or path.name, readers)
    if not table.rows:
        raise BadInput(f"{path} holds no row; write a prompt in each")
    return table


def _text(path: Path, note: Callable[[str], None]) -> Table:
    return Table(path, ("prompt",), tuple({"prompt": text} for text in read_prompts(path, note)))


def _csv(path: Path, note: Callable[[str], None]) -> list[tuple[str, dict[str, Any]]]:
    text = read_text(path, "prompt file", "is")
    if "\0" in text:
        raise BadInput(f"{path} holds a zero byte; save it as CSV in UTF-8")
    head = text.lstrip("\n").partition("\n")[0]
    delimiter = max(DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        if not all(columns):
            raise BadInput(f"{path}: column {columns.index('') + 1} has no name; name each in the first line")
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise BadInput(f"{path} has two columns {twice!r}; name each once")
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise BadInput(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the first line names "
                    f"{len(columns)}; put quotes around a text with a {delimiter!r} in it"
                )
            rows.append((f"{path}, line {reader.line_num}", dict(zip(columns, cells))))
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    return rows


def _jsonl(path: Path, note: Callable[[str], None]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(read_text(path, "prompt file", "is").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: not JSON ({first_line(error)})") from error
        row = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise BadInput(f'{path}, line {number}: expected an object such as {{"prompt": "a cat"}}')
        rows.append((f"{path}, line {number}", row))
    return rows


def _parquet(path: Path, note: Callable[[str], None]) -> list[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table as read_parquet
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{path}: pyarrow is not installed; pip install pyarrow, or give a CSV file"
        ) from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read the prompt file {path}: {error.strerror}") from error
    try:
        rows = read_parquet(io.BytesIO(data)).to_pylist()
    except (ArrowException, ValueError, OSError) as error:
        raise BadInput(f"{path} is not a Parquet file ({first_line(error)})") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _checked(path: Path, rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """Rows of plain values; prompts as they can be drawn."""
    columns: dict[str, None] = {}
    found = []
    for place, row in rows:
        kept = {}
        for name, value in row.items():
            columns[name] = None
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            if not isinstance(value, (str, int, float, bool)) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise BadInput(f"{place}: {name!r} is {value!r:.60}; expected a text or a number")
            kept[name] = check_prompt(str(value), f"{place}: the prompt") if name == "prompt" else value
        if kept:
            found.append(kept)
    if len(columns) > MOST_COLUMNS:
        raise BadInput(f"{path} has {len(columns):,} columns; the limit is {MOST_COLUMNS}")
    return Table(path, tuple(columns), tuple(found))

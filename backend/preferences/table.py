"""Groups of pictures from a table of scores, given by people or by other tools.

The table is CSV with a header line, or JSON lines. Its columns: `image` (a path relative to the table's
folder), `prompt`, `score`, and optionally `drawn_as` (the prompt that drew the picture, if it is another) and
`seed`. Pictures of the same prompt are compared with each other. A picture in several lines counts once, with
its mean score, even under several file names.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput
from ..core.parsing import parse_json
from ..factory import reward_spec
from ..storage.files import is_inside, read_text
from ..storage.images import read_picture
from .pairing import PictureGroup, ScoredPicture, score_range
from .store import picture_name


class ImportRow(BaseModel):
    """One picture of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    image: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    score: FiniteFloat
    drawn_as: str = ""
    seed: int | None = Field(None, ge=0)


def read_table(path: Path, reward: str, lower_is_better: bool = False) -> Iterator[PictureGroup]:
    """One group for each prompt. `path` is the table, or a folder that holds one.

    `reward` is the name of the scores. If it is a reward of this package, its range and direction are used.
    Raises BadInput, with the line number, also for a picture that cannot be read.
    """
    spec = reward_spec(reward)
    if spec and spec.higher_is_better and lower_is_better:
        raise BadInput(
            f"higher scores of {reward!r} are better; leave --lower-is-better out, or give the table's "
            "scores another name with --reward"
        )
    higher = spec.higher_is_better if spec else not lower_is_better
    if path.is_dir():
        path = _only_table(path)
    groups: dict[str, list[ScoredPicture]] = {}
    contents: dict[Path, str] = {}
    for number, row in _rows(path):
        file = path.parent / row.image
        if file not in contents:
            contents[file] = _content(path, number, file)
        groups.setdefault(row.prompt, []).append(
            ScoredPicture(
                partial(read_picture, file),
                row.drawn_as or row.prompt,
                row.score,
                row.seed,
                {reward: row.score},
                content=contents[file],
            )
        )
    for prompt, pictures in groups.items():
        yield PictureGroup(prompt, pictures, reward, higher, score_range(spec), "table", str(path))


def _content(table: Path, number: int, file: Path) -> str:
    """The hash of a line's picture. Raises BadInput."""
    if not is_inside(table.parent, file, links=True):
        raise BadInput(f"{table}, line {number}: {file} is not in the table's folder; copy it there")
    if not os.path.isfile(file):
        raise BadInput(f"{table}, line {number}: no picture {file}; paths start at the table's folder")
    try:
        return picture_name(read_picture(file))
    except BadInput as error:
        raise BadInput(f"{table}, line {number}: {error}; repair it, or delete the line") from error


def _only_table(folder: Path) -> Path:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".csv", ".jsonl"))
    if len(found) != 1:
        there = f"it has {', '.join(file.name for file in found)}: name one" if found else "it has none"
        raise BadInput(f"expected a folder with one table, .csv or .jsonl, in {folder}; {there}")
    return found[0]


def _rows(path: Path) -> Iterator[tuple[int, ImportRow]]:
    text = read_text(path, "table", "is")
    empty = True
    for number, values in _csv(path, text) if path.suffix.lower() == ".csv" else _json_lines(path, text):
        empty = False
        try:
            yield number, ImportRow.model_validate(values)
        except ValidationError as error:
            raise BadInput(f"{path}, line {number}: {validation_message(error)}") from error
    if empty:
        raise BadInput(f"{path} names no pictures; expected the columns image, prompt, score")


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    whole = 0  # lines read so far
    try:
        for values in reader:
            whole = reader.line_num
            # An empty cell means no value. A cell beyond the header gets the key None, which is refused.
            yield whole, {str(key): value for key, value in values.items() if value}
    except csv.Error as error:
        raise BadInput(f"{path}, line {whole + 1}: no CSV ({error}); is a quote left open?") from error


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise BadInput(f"{path}, line {number}: not JSON ({error})") from error

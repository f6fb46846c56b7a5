"""A folder of pictures with a table of their scores, as groups: what other tools or people have judged.

The table is CSV with a head, or JSON lines: `image` (a path, from the table's folder), `prompt`, `score`, and
where they are known `drawn_as` (the words that drew the picture, if not the prompt) and `seed`. Pictures of
the same prompt are compared with each other; one in several lines, whatever its files are called, counts once
with the mean of its scores.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput
from ..storage.files import read_text
from ..storage.images import read_picture
from .pairing import PictureGroup, ScoredPicture, reward_spec, score_range
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
    """A group for each prompt. `path` is the table, or a folder with one. `reward` names the scores; one of
    ours brings its range and direction.

    Raises BadInput with the line's number, also for a picture that cannot be read.
    """
    spec = reward_spec(reward)
    if spec and spec.higher_is_better and lower_is_better:
        raise BadInput(
            f"higher scores of {reward!r} are better; leave --lower-is-better out, or call the "
            "table's something else by --reward"
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
    """What a line's picture shows. Raises BadInput."""
    if not file.is_file():
        raise BadInput(f"{table}, line {number}: no picture {file}; paths start where the table is")
    try:
        return picture_name(read_picture(file))
    except BadInput as error:
        raise BadInput(f"{table}, line {number}: {error}; mend it, or take the line out") from error


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
    whole = 0  # lines of what has been read
    try:
        for values in reader:
            whole = reader.line_num
            # An empty cell is a value left out; what stands beyond the head is refused under its own name.
            yield whole, {str(key): value for key, value in values.items() if value}
    except csv.Error as error:
        raise BadInput(f"{path}, line {whole + 1}: no CSV ({error}); is a quote left open?") from error


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, line {number}: no JSON ({error})") from error

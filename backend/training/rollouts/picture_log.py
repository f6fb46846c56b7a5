"""Logs of prompts and pictures: what people typed, what was drawn, and how rewards scored it.

A log is one of
- a file of JSON lines: {"prompt": what the user typed, "system": what drew the picture, if it was something
  else, "image": its path from the file's folder, "scores": {reward: score}};
- a folder in the layout of DiffusionDB: folders `part-000001` of pictures, each with `part-000001.json`,
  {"picture.png": {"p": prompt, …}, …};
- a folder of pictures with captions, `x.png` and `x.txt`, as trainers write them.
`reprise data pictures` draws what a log has no pictures of, scores them, and writes one of the first form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ...core.errors import BadInput
from ...core.parsing import parse_json
from ...storage.files import is_inside, read_text
from ..common.data import read_records
from .prompts import read_prompts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAKES = "`reprise data pictures` makes one"


class LogLine(BaseModel):
    """A line of a log. One without `image` is yet to be drawn, by `reprise data pictures`."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    """What the user typed."""
    system: str = ""
    """The text that drew the picture; the prompt, where this is empty."""
    image: str | None = Field(None, min_length=1)
    """The picture's path, from the log's folder."""
    scores: dict[str, FiniteFloat] = {}
    """Reward -> its score of the picture against the user's prompt."""


@dataclass(frozen=True)
class LoggedPicture:
    """One line of a log, whatever its form."""

    prompt: str
    system: str
    image: Path | None  # None: not drawn yet
    scores: Mapping[str, float]

    @property
    def picture(self) -> Path:
        assert self.image is not None, "only drawn records are trained on"
        return self.image


def read_log(path: Path) -> list[LoggedPicture]:
    """The records of a log of any form. Raises BadInput with the place of what is wrong."""
    if not path.is_dir():
        return _read_lines(path)
    parts = sorted(path.rglob("part-*.json"))
    found = [record for part in parts for record in _read_part(part)] if parts else _read_captions(path)
    if not found:
        raise BadInput(
            f"{path} holds no log: no part-*.json as DiffusionDB has them, and no pictures with "
            f"captions (x.png and x.txt); {MAKES}"
        )
    return found


def read_source(source: str, use: str = "train") -> tuple[list[LoggedPicture], dict[str, str]]:
    """(records, user's prompt -> what judges read in its place) of a log, or of prompts that `read_prompts`
    reads for a `use`; these are drawn as they are. Raises BadInput."""
    path = Path(source)
    if path.is_dir():
        return read_log(path), {}
    if path.is_file():
        first = next((line for line in read_text(path, "log", "is").split("\n") if line.strip()), "")
        if first.lstrip().startswith("{") and '"judged_as"' not in first:
            return read_log(path), {}
    prompts = read_prompts(source, use)
    records = [LoggedPicture(one.prompt, one.prompt, None, {}) for one in prompts]
    return records, {one.prompt: one.judge_prompt for one in prompts}


def _read_lines(path: Path) -> list[LoggedPicture]:
    lines = read_records(path, LogLine, "log lines", MAKES)
    return [
        LoggedPicture(
            line.prompt,
            line.system or line.prompt,
            None if line.image is None else path.parent / line.image,
            line.scores,
        )
        for line in lines
    ]


def _read_part(path: Path) -> list[LoggedPicture]:
    """A part of DiffusionDB. Pictures without a prompt, which people drew too, are left out."""
    try:
        entries: Any = parse_json(read_text(path, "log", "is"))
        prompts = {name: " ".join(one["p"].split()) for name, one in entries.items()}
        if not all(is_inside(path.parent, path.parent / name, links=True) for name in prompts):
            raise ValueError("a picture outside of its folder")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BadInput(
            f'{path} is no part of DiffusionDB: expected {{"picture.png": {{"p": prompt}}, …}}; '
            "fetch it again"
        ) from error
    return [
        LoggedPicture(prompt, prompt, path.parent / name, {}) for name, prompt in prompts.items() if prompt
    ]


def _read_captions(path: Path) -> list[LoggedPicture]:
    found = []
    for image in sorted(path.rglob("*")):
        caption = image.with_suffix(".txt")
        if image.suffix.lower() in SUFFIXES and caption.is_file():
            prompt = " ".join(read_text(caption, "caption", "is").split())
            if prompt:
                found.append(LoggedPicture(prompt, prompt, image, {}))
    return found

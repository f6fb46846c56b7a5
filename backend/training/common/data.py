"""What trainings learn from: how much may be missing, what a step takes, whether it is still the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from ...core.config import parse_line
from ...core.errors import BadInput
from ...core.seeds import seed_of, shuffled_indices
from ...storage.files import read_json, read_text, write_whole

MAX_LOST = 0.1  # share of the records that may be unusable; beyond it a run is refused
STARTED_WITH = Path("checkpoints") / "begun.json"
T = TypeVar("T")


class HasPrompt(Protocol):
    @property
    def prompt(self) -> str: ...


Item = TypeVar("Item", bound=HasPrompt)
Record = TypeVar("Record", bound=BaseModel)


def check_lost(lost: int, of: int, what: str, why: str, remedy: str, log: Callable[[str], None]) -> None:
    """Log how many records are left out. Raises BadInput where they are too many, or all."""
    if lost > MAX_LOST * of or lost == of:
        raise BadInput(f"{lost} of {of} of {what} {why}; {remedy}")
    if lost:
        log(f"left out {lost} of {of} of {what}: they {why}")


def read_records(path: Path, model: type[Record], what: str, makes: str) -> list[Record]:
    """The lines of a JSON-lines file as `model`, without blank ones. Raises BadInput with the number of a bad
    line, and where there is none; `what` the lines are, and which command `makes` them, is for the
    message."""
    text = read_text(path, what, "are", f"; {makes}")
    records = [
        parse_line(model, line, f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not records:
        raise BadInput(f"{path} holds no {what}; {makes}")
    return records


def split_by_prompt(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """(to train on, held out) of items that have a `prompt`: whole prompts, chosen by their words alone."""
    prompts = sorted({item.prompt for item in items}, key=lambda prompt: seed_of("held out", prompt))
    aside = set(prompts[: math.ceil(share * len(prompts))])
    training = [item for item in items if item.prompt not in aside]
    return training, [item for item in items if item.prompt in aside]


def nothing_left(items: Sequence[HasPrompt], share: float) -> BadInput:
    """The error where `split_by_prompt` leaves nothing to train on."""
    prompts = len({item.prompt for item in items})
    return BadInput(f"eval_share={share:g} of {prompts} prompts leaves none to train on; lower it")


def batches_of_step(
    step: int, items: Sequence[T], batch_size: int, accumulation: int, seed: int
) -> list[list[T]]:
    """What step `step` (from 1) learns from: `accumulation` batches, which follow from (seed, step) alone."""
    count = batch_size * accumulation
    places = range((step - 1) * count, step * count)
    chosen = [items[i] for i in shuffled_indices(len(items), seed, places)]
    return [chosen[first : first + batch_size] for first in range(0, count, batch_size)]


def check_same_data(run: Path, source: object, now: Mapping[str, Any], resumed: bool) -> None:
    """Raises BadInput where a resumed run would learn from other data than it started with.

    `now` describes the data of `source`. A new run stores it; a resumed run compares what was stored.
    """
    path = run / STARTED_WITH
    if not resumed:
        write_whole(path, json.dumps(now) + "\n")
        return
    try:
        stored = read_json(path, "begin another run", {})
    except FileNotFoundError as error:
        raise BadInput(
            f"{path} is missing, so that the data cannot be compared; begin another run"
        ) from error
    if any(now.get(name) != value for name, value in stored.items()):
        raise BadInput(
            f"{source}, or what it names, changed since {run} began; bring it back, or begin another run"
        )


def lines_digest(lines: Iterable[str]) -> str:
    """SHA-256 of texts without line breaks, such as lines of JSON, for `check_same_data`."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pictures_digest(pictures: Iterable[Path]) -> str:
    """SHA-256 of the contents of all files, for `check_same_data`. Raises BadInput for an unreadable one."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(pictures):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise BadInput(f"cannot read the picture {path}: {error.strerror}; bring it back") from error
    return digest.hexdigest()

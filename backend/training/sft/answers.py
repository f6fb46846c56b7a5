"""The answers of a chat model to prompts, as they came, in a folder from which data is made.

`answers.jsonl` has a line for each answer, so that a call that was stopped or failed goes on, and no answer
is requested twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...core.config import validation_message
from ...core.errors import BadInput
from ...storage.files import append_line, write_whole
from ...storage.outputs import write_made
from .data import RewriteExample


class AnswerLine(BaseModel):
    """A line of `answers.jsonl`: the answer to one variant of a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    variant: int = Field(ge=0)
    reason: str = ""
    rewrite: str = ""
    why: str | None = None  # there is no rewrite in it
    refused: bool = False  # by the server

    @cached_property
    def example(self) -> RewriteExample | str:
        """The example that it makes, or why it makes none."""
        if self.why is not None:
            return self.why
        if not self.reason.strip():
            return "the answer has no <reason>"
        try:
            return RewriteExample(prompt=self.prompt, reason=self.reason, rewrite=self.rewrite)
        except ValidationError as error:
            return validation_message(error)


class AnswerFolderInfo(BaseModel):
    """`begun.json`: the rewriter that gave the answers."""

    model_config = ConfigDict(extra="forbid")

    rewriter: str
    fingerprint: str | None = None
    seed: int


class AnswerFolder:
    """The answers of one rewriter at one seed, in a folder that is made with the first answer."""

    def __init__(self, folder: Path, rewriter: str, seed: int):
        """Raises BadInput where the folder has answers of another rewriter or seed, or a damaged line."""
        self.folder, self.path = folder, folder / "answers.jsonl"
        self.info = _read_info(folder / "begun.json") or AnswerFolderInfo(rewriter=rewriter, seed=seed)
        for name, now in (("rewriter", rewriter), ("seed", seed)):
            then = getattr(self.info, name)
            if then != now:
                raise BadInput(
                    f"{folder} was begun with --{name} {then}, not {now}; give that one, or another --out"
                )
        self.by_prompt: dict[str, dict[int, AnswerLine]] = {}  # prompt -> variant -> answer
        self.count = 0
        for answer in _read_answers(self.path):
            self._take(answer)

    def check_rewriter(self, fingerprint: str) -> None:
        """Raises BadInput where the rewriter is not the one that gave the answers."""
        if self.info.fingerprint not in (None, fingerprint):
            raise BadInput(
                f"{self.info.rewriter} has other weights or settings than {self.folder} was "
                "begun with; give another --out"
            )
        self.info.fingerprint = fingerprint
        self._write_info()

    def add(self, answer: AnswerLine) -> None:
        append_line(self.path, answer.model_dump_json(exclude_defaults=True))
        self._take(answer)

    def save(self, path: Path, examples: Iterable[RewriteExample]) -> None:
        """Write examples as `sft` reads them."""
        rows = (json.dumps(one.model_dump(exclude_none=True), ensure_ascii=False) for one in examples)
        write_made(self.folder, path, "".join(row + "\n" for row in rows))

    def _take(self, answer: AnswerLine) -> None:
        self.count += answer.variant not in self.by_prompt.setdefault(answer.prompt, {})
        self.by_prompt[answer.prompt].setdefault(answer.variant, answer)

    def _write_info(self) -> None:
        write_whole(self.folder / "begun.json", self.info.model_dump_json(indent=1) + "\n")


def _read_info(path: Path) -> AnswerFolderInfo | None:
    try:
        return AnswerFolderInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give another --out") from error
    except ValidationError as error:
        raise BadInput(f"{path}: {validation_message(error)}; give another --out") from error


def _read_answers(path: Path) -> Iterator[AnswerLine]:
    """The lines of the file; a last one that is half written is cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_whole(path, whole)
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            yield AnswerLine.model_validate_json(line)
        except ValidationError as error:
            raise BadInput(
                f"{path}, line {number}: {validation_message(error)}; delete this line, and what it held is "
                "requested again"
            ) from error

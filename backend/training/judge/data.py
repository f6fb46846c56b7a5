"""What a judge learns from: questions about pictures and previews, with the right answers.

Source: PARM (Guo et al. 2025, arXiv 2501.13926), section 3: match (its ORM) is about finished pictures,
clarity and potential are about pictures still being drawn, and PARM++'s reasons are here called "critique".
`make_data` writes a file of JSON lines: {"prompt", "question", "image": its path from the file's folder,
"label": true or false, or "text": the reason, "step": the step of a preview (finished pictures have none),
"seed", "split"}.

A prompt's words alone decide its split: "train", "calibration" and "test" (for figures) share no prompt, in
all files made with the same shares. ShapeWorld's prompts are split by the combination that they ask for, not
by the ground or the order of words. The split train has as many yes as no. The others have them as they come,
as they are used to measure.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.errors import BadInput
from ...core.seeds import seed_of
from ...core.types import SEED_RANGE
from ...rewards.vlm.questions import CRITIQUE, QUESTIONS
from ..common.data import check_lost, read_records

Split = Literal["train", "calibration", "test"]
YES_OR_NO = ("match", "clarity", "potential")
MAKES = "`reprise data judge` makes them"


class JudgeLine(BaseModel):
    """A line of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1)
    """The user's prompt."""
    question: Literal["match", "clarity", "potential", "critique"]
    image: str = Field(min_length=1)
    """The picture's path, from the file's folder."""
    label: bool | None = None
    """The right answer to a yes-or-no question."""
    text: str = ""
    """The right answer to "critique"."""
    step: int | None = Field(None, ge=1)
    """The step of a preview; a finished picture has none."""
    seed: int | None = None
    """The seed of the picture."""
    split: Split = "train"

    @model_validator(mode="after")
    def _answered(self) -> JudgeLine:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.question == "critique" and not (self.text.strip() and self.label is None):
            raise ValueError('a critique is answered with "text", and has no "label"')
        if self.question != "critique" and (self.text or self.label is None):
            raise ValueError(f'{self.question} is answered with "label", true or false, and has no "text"')
        return self


@dataclass(frozen=True)
class JudgeExample:
    """A line, with the picture's path on this machine."""

    line: JudgeLine
    picture: Path

    @property
    def question(self) -> str:
        """The question in words, as `rewards.vlm` asks it."""
        words = QUESTIONS.get(self.line.question, CRITIQUE)
        return words.format(self.line.prompt.strip())

    @property
    def answer(self) -> bool | str:
        return " ".join(self.line.text.split()) if self.line.label is None else self.line.label


def read_examples(path: Path) -> list[JudgeExample]:
    """The examples of a file. Raises BadInput with the line's number."""
    lines = read_records(path, JudgeLine, "examples", MAKES)
    return [JudgeExample(line, path.parent / line.image) for line in lines]


def present(examples: Sequence[JudgeExample], log: Callable[[str], None]) -> list[JudgeExample]:
    """Those whose pictures are there. Raises BadInput where many are gone."""
    there = {path: path.is_file() for path in {one.picture for one in examples}}
    found = [one for one in examples if there[one.picture]]
    check_lost(
        len(examples) - len(found),
        len(examples),
        "the examples' pictures",
        "are gone",
        "bring them back, or draw them again with `reprise data judge`",
        log,
    )
    return found


def of_split(examples: Iterable[JudgeExample], split: Split, questions: Sequence[str]) -> list[JudgeExample]:
    return [one for one in examples if one.line.split == split and one.line.question in questions]


def check_teaches(examples: Sequence[JudgeExample]) -> None:
    """Raises BadInput where there is nothing to learn: no example, or all answers to a question are the
    same."""
    if not examples:
        raise BadInput(f"no example of the split train is about the questions that are trained; {MAKES}")
    for question in YES_OR_NO:
        labels = Counter(one.line.label for one in examples if one.line.question == question)
        if len(labels) == 1:
            ((label, count),) = labels.items()
            raise BadInput(
                f"all {count} examples of {question!r} to train on have the answer "
                f"{'yes' if label else 'no'}: nothing can be learned from them; draw more "
                "prompts, move the threshold, or leave the question out"
            )


def split_key(prompt: str) -> str:
    """What decides a prompt's split: prompts with the same key must not be on two sides."""
    words = " ".join(prompt.split())
    return _shapeworld_keys().get(words, words)


def prompt_mark(prompt: str) -> str:
    """A short mark, by which a judge's folder says which prompts it was trained on."""
    return hashlib.sha256(split_key(prompt).encode()).hexdigest()[:12]


@cache
def _shapeworld_keys() -> dict[str, str]:
    from ...shapeworld.prompts import SPLITS, prompts

    return {case.prompt: case.key for split in SPLITS for case in prompts(split)}


def split_of(prompt: str, test_share: float, calibration_share: float) -> Split:
    """The split of a prompt, by its words alone."""
    place = seed_of("judge split", split_key(prompt)) / SEED_RANGE
    if place < test_share:
        return "test"
    return "calibration" if place < test_share + calibration_share else "train"


def balanced(lines: Iterable[JudgeLine]) -> list[JudgeLine]:
    """The lines with as many yes as no to train on: for each question, and for match and potential at each
    step. Clarity depends on the step, so its labels are balanced over all steps. Which lines are left out
    follows from their words."""
    groups: dict[tuple[object, ...], list[JudgeLine]] = defaultdict(list)
    for line in lines:
        step = None if line.question == "clarity" else line.step
        groups[line.split, line.question, step].append(line)
    chosen: list[JudgeLine] = []
    for (split, question, _), group in groups.items():
        if split != "train" or question == "critique":
            chosen += group
            continue
        sides = [[line for line in group if line.label is label] for label in (True, False)]
        least = min(map(len, sides))
        for side in sides:
            chosen += sorted(side, key=_chance)[:least]
    return sorted(chosen, key=_chance)


def evenly_chosen(examples: Sequence[JudgeExample], most: int) -> list[JudgeExample]:
    """At most `most` of them, always the same: one of each question and step in turn, in random order, so
    that yes is as frequent as in all."""
    groups: dict[tuple[object, ...], list[JudgeExample]] = defaultdict(list)
    for one in sorted(examples, key=lambda one: _chance(one.line)):
        groups[one.line.question, one.line.step].append(one)
    found: list[JudgeExample] = []
    while len(found) < min(most, len(examples)):
        found += [group.pop(0) for group in groups.values() if group]
    return found[:most]


def _chance(line: JudgeLine) -> int:
    return seed_of("judge", line.prompt, line.question, line.step, line.seed, Path(line.image).name)

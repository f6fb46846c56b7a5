"""The prompts that a policy is trained and evaluated on: from files, and ShapeWorld's own.

A file has one prompt in each line: plain text, or JSON `{"prompt": …, "judged_as": …}` where the judge should
read other words than the rewriter, as for paraphrases.

`shapeworld:N` is N prompts of each of ShapeWorld's six tasks, all of the split train;
`shapeworld:N:counting,position` is N prompts of each of these tasks. An eighth of the combinations are never
trained on. Evaluations while training use them, so that the held-out split stays unseen until the end.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ...core.config import parse_line
from ...core.errors import BadInput, UnknownName
from ...core.seeds import shuffled_indices
from ...storage.files import read_text

ASIDE = 8  # one combination in that many is for evaluation
TAUGHT = ("train", "held-out")  # uses that take the other combinations; all of the held-out split are "other"


class TrainingPrompt(BaseModel):
    """One prompt, and the words with which rewards compare its picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    judged_as: str = ""

    @property
    def judge_prompt(self) -> str:
        return self.judged_as or self.prompt


def read_prompts(source: str, use: str = "train", seed: int = 0) -> list[TrainingPrompt]:
    """The prompts of a file or of `shapeworld:N[:TASK,…]`. Raises BadInput with the line's number.

    `use` decides which of ShapeWorld's combinations are taken: "train", "evaluate", "paraphrase", or
    "held-out", the split that no training sees, for figures.
    """
    name, colon, rest = source.partition(":")
    if name == "shapeworld":
        count, _, tasks = rest.partition(":")
        if colon and not (count.isdigit() and int(count)):
            raise BadInput(f"expected shapeworld:N with N prompts of each task, got {source!r}")
        return _shapeworld(int(count) if colon else 40, tasks.split(",") if tasks else [], use, seed)
    path = Path(source)
    text = read_text(path, "prompts", "are")
    found = [
        _read(line, f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not found:
        raise BadInput(f"{path} holds no prompts; write one in each line")
    return list(dict.fromkeys(found))


def _read(line: str, where: str) -> TrainingPrompt:
    if not line.lstrip().startswith("{"):
        return TrainingPrompt(prompt=line)
    return parse_line(TrainingPrompt, line, where)


def _shapeworld(per_task: int, tasks: Sequence[str], use: str, seed: int) -> list[TrainingPrompt]:
    from ...shapeworld.paraphrases import paraphrase
    from ...shapeworld.prompts import TASKS, PromptCase, prompts

    for task in tasks:
        if task not in TASKS:
            raise UnknownName("task", task, TASKS)
    # Evaluations do not depend on the run's seed, so that runs can be compared.
    rng = random.Random(seed if use == "train" else 0)
    chosen: list[PromptCase] = []
    for task in tasks or TASKS:
        by_key: dict[str, list[PromptCase]] = {}
        for case in prompts("held-out" if use == "held-out" else "train"):
            if case.task == task:
                by_key.setdefault(case.key, []).append(case)
        ranked = sorted(by_key, key=lambda key: hashlib.sha256(f"aside {key}".encode()).digest())
        aside = 0 if use == "held-out" else max(1, len(ranked) // ASIDE)
        combinations = [by_key[key] for key in (ranked[aside:] if use in TAUGHT else ranked[:aside])]
        rng.shuffle(combinations)
        for cases in combinations:
            rng.shuffle(cases)
        spread = itertools.chain.from_iterable(itertools.zip_longest(*combinations))
        chosen += [case for case in spread if case is not None][:per_task]
    if use == "paraphrase":
        return [
            TrainingPrompt(prompt=paraphrase(case, rng).strip(), judged_as=case.prompt) for case in chosen
        ]
    return [TrainingPrompt(prompt=case.prompt) for case in chosen]


class PromptStream:
    """Prompts without end: all of them in an order of (seed, round), then again in another order.

    `position` is how many were taken. A stopped run has to store nothing else.
    """

    def __init__(self, prompts: Sequence[TrainingPrompt], seed: int, position: int = 0):
        self.prompts, self.seed, self.position = prompts, seed, position

    def take(self, count: int) -> list[tuple[int, TrainingPrompt]]:
        """The next prompts, each with its position, which is unique."""
        taken = []
        for _ in range(count):
            (index,) = shuffled_indices(len(self.prompts), self.seed, [self.position])
            taken.append((self.position, self.prompts[index]))
            self.position += 1
        return taken

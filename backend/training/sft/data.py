"""Examples of supervised training: lines of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.config import parse_line
from ...core.errors import BadInput
from ...rewriters.prompting import FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ...storage.files import read_text


class RewriteExample(BaseModel):
    """One line of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    """What the user typed."""
    reason: str = Field(min_length=1)
    """How the scene is rehearsed."""
    rewrite: str = Field(min_length=1)
    """The prompt to render."""
    critique: str | None = None
    """What was wrong with a picture of an earlier rewrite."""

    @model_validator(mode="after")
    def _reads_back(self) -> RewriteExample:
        answer = parse(FORM.format(reason=self.reason, prompt=self.rewrite))
        if isinstance(answer, Unparsable):
            raise ValueError(f"cannot be read back: the answer {answer.why}; take the tags out of the text")
        return self

    @property
    def answer(self) -> Answer:
        return Answer(" ".join(self.reason.split()), " ".join(self.rewrite.split()))


def read_examples(path: Path) -> list[RewriteExample]:
    """The examples of a JSON-lines file; blank lines are skipped. Raises BadInput with the line's number."""
    text = read_text(path, "examples", "are", "; `reprise data rewrites` makes some")
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        examples.append(parse_line(RewriteExample, line, f"{path}, line {number}"))
    if not examples:
        raise BadInput(f'{path} holds no examples; expected lines {{"prompt": …, "reason": …, "rewrite": …}}')
    return examples


def encode(
    example: RewriteExample, tokenizer: Any, system: str, reasoning: bool = True
) -> dict[str, list[int]]:
    """Token ids of prompt and answer; `labels` are -100 on the prompt, so only the answer is learned."""
    asked = prompt_ids(tokenizer, example.prompt, example.critique, system)
    answer = example.answer if reasoning else Answer("", example.answer.prompt)
    written = answer_ids(tokenizer, answer)
    return {"input_ids": asked + written, "labels": [-100] * len(asked) + written}

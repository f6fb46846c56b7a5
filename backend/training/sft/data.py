"""Examples of rewrites: lines of JSON, and their token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...rewriters.prompting import FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ..common.data import read_records


class RewriteExample(BaseModel):
    """One line of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    """The user's prompt, as typed."""
    reason: str = Field(min_length=1)
    """What the scene has to show, before the prompt is written."""
    rewrite: str = Field(min_length=1)
    """The prompt to render."""
    critique: str | None = None
    """What was wrong with a picture of an earlier rewrite, if one is to be corrected."""

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
    return read_records(path, RewriteExample, "examples", "`reprise data rewrites` makes some")


def encode(
    example: RewriteExample, tokenizer: Any, system: str, reasoning: bool = True
) -> dict[str, list[int]]:
    """Token ids of prompt and answer; `labels` are -100 on the prompt, so only the answer is learned."""
    prompt = prompt_ids(tokenizer, example.prompt, example.critique, system)
    answer = example.answer if reasoning else Answer("", example.answer.prompt)
    written = answer_ids(tokenizer, answer)
    return {"input_ids": prompt + written, "labels": [-100] * len(prompt) + written}

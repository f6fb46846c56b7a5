"""What all rewriters that ask a language model share: the checks, a seed for each row, reading an answer.

A row is one answer that is asked for: one variant of one prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..core.errors import AnswerRefused, BadInput
from ..core.types import SEED_RANGE, Rewrite
from .prompting import Unparsable, parse


@dataclass(frozen=True)
class RewriteRow:
    """Variant 0 is the likeliest answer, the others are samples; a variant is the same in whatever call."""

    prompt: str
    variant: int
    critique: str | None = None


@runtime_checkable
class RowRewriter(Protocol):
    """A rewriter that asks a model, row by row."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def ask(
        self,
        rows: Sequence[RewriteRow],
        seed: int,
        told: Callable[[int, Rewrite | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Hand each row's rewrite to `told(its number, rewrite)` as it comes, in the caller's thread; what
        has come, also when the call fails or is stopped. A server that answers others may refuse a row."""
        ...


def all_rows(
    prompts: Sequence[str], variants: int, seed: int, critiques: Sequence[str | None] | None
) -> list[RewriteRow]:
    """The rows of a call of `rewrite`, by prompts. Raises BadInput where it is asked wrongly."""
    critiques = check_request(prompts, variants, seed, critiques)
    return [
        RewriteRow(prompt, variant, critique)
        for prompt, critique in zip(prompts, critiques, strict=True)
        for variant in range(variants)
    ]


def group_by_prompt(rewrites: Sequence[Rewrite], variants: int) -> list[list[Rewrite]]:
    """The rewrites of `all_rows`, a list for each prompt."""
    return [list(rewrites[start : start + variants]) for start in range(0, len(rewrites), variants)]


def check_request(
    prompts: Sequence[str], variants: int, seed: int, critiques: Sequence[str | None] | None
) -> Sequence[str | None]:
    """The critiques, one (or None) for each prompt. Raises BadInput where `rewrite` is asked wrongly."""
    if variants < 1:
        raise BadInput(f"expected at least 1 variant of a rewrite, got {variants}")
    if not 0 <= seed < SEED_RANGE:
        raise BadInput(f"expected 0 <= seed < 2**63, got {seed}")
    if critiques is not None and len(critiques) != len(prompts):
        raise BadInput(f"expected one critique (or None) per prompt, got {len(critiques)} for {len(prompts)}")
    return critiques or [None] * len(prompts)


def row_seed(seed: int, prompt: str, critique: str | None, variant: int) -> int:
    """The seed of one row's noise, from what is asked alone."""
    asked = json.dumps([seed, prompt, critique, variant])
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big") % SEED_RANGE


def read_answer(text: str, prompt: str, rewriter: str, cut: str = "") -> Rewrite:
    """What a model wrote for `prompt`; where it cannot be parsed, the prompt itself with the reason why.

    `cut` says by which limit the text was cut off, if it was: "512 tokens".
    """
    answer = parse(text)
    if isinstance(answer, Unparsable):
        limit = f" (it reached the limit of {cut})" if cut else ""
        return keep_prompt(prompt, rewriter, f"the answer {answer.why}{limit}")
    return Rewrite(answer.reason, answer.prompt, rewriter)


def keep_prompt(prompt: str, rewriter: str, why: str) -> Rewrite:
    """The user's prompt in place of a rewrite."""
    return Rewrite("", prompt, rewriter, fallback=why)

"""What all rewriters with a language model share: input checks, a seed per row, parsing an answer.

A row is one requested answer: one variant of one prompt.
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
    """One requested answer. Variant 0 is the likeliest answer, the others are sampled.

    A variant's answer does not depend on which other rows are in the call.
    """

    prompt: str
    variant: int
    critique: str | None = None


@runtime_checkable
class RowRewriter(Protocol):
    """A rewriter that can answer single rows, each as soon as it is ready."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def rewrite_rows(
        self,
        rows: Sequence[RewriteRow],
        seed: int,
        on_rewrite: Callable[[int, Rewrite | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Calls `on_rewrite(row index, rewrite)` for each row as it arrives, in the caller's thread.

        If the call fails or is stopped, what arrived before was handed over. A server may refuse a single
        row; `on_rewrite` then gets the AnswerRefused.
        """
        ...


def all_rows(
    prompts: Sequence[str], variants: int, seed: int, critiques: Sequence[str | None] | None
) -> list[RewriteRow]:
    """The rows of a call of `rewrite`, prompt by prompt. Raises BadInput for invalid arguments."""
    critiques = check_request(prompts, variants, seed, critiques)
    return [
        RewriteRow(prompt, variant, critique)
        for prompt, critique in zip(prompts, critiques, strict=True)
        for variant in range(variants)
    ]


def group_by_prompt(rewrites: Sequence[Rewrite], variants: int) -> list[list[Rewrite]]:
    """The rewrites of `all_rows`, as one list per prompt."""
    return [list(rewrites[start : start + variants]) for start in range(0, len(rewrites), variants)]


def check_request(
    prompts: Sequence[str], variants: int, seed: int, critiques: Sequence[str | None] | None
) -> Sequence[str | None]:
    """Checks the arguments of `rewrite`; returns the critiques, one (or None) per prompt. Raises BadInput."""
    if variants < 1:
        raise BadInput(f"expected at least 1 variant of a rewrite, got {variants}")
    if not 0 <= seed < SEED_RANGE:
        raise BadInput(f"expected 0 <= seed < 2**63, got {seed}")
    if critiques is not None and len(critiques) != len(prompts):
        raise BadInput(f"expected one critique (or None) per prompt, got {len(critiques)} for {len(prompts)}")
    return critiques or [None] * len(prompts)


def row_seed(seed: int, prompt: str, critique: str | None, variant: int) -> int:
    """The seed of one row's noise. It depends on these four values alone."""
    request = json.dumps([seed, prompt, critique, variant])
    return int.from_bytes(hashlib.sha256(request.encode()).digest()[:8], "big") % SEED_RANGE


def read_answer(text: str, prompt: str, rewriter: str, truncated_at: str = "") -> Rewrite:
    """Parses a model's answer to `prompt`. If it cannot be parsed, returns the prompt itself with the cause.

    `truncated_at` names the limit that cut the text off, such as "512 tokens"; "" if none did.
    """
    answer = parse(text)
    if isinstance(answer, Unparsable):
        limit = f" (it reached the limit of {truncated_at})" if truncated_at else ""
        return keep_prompt(prompt, rewriter, f"the answer {answer.why}{limit}")
    return Rewrite(answer.reason, answer.prompt, rewriter)


def keep_prompt(prompt: str, rewriter: str, why: str) -> Rewrite:
    """The user's prompt in place of a rewrite; `why` says what was wrong with the rewrite."""
    return Rewrite("", prompt, rewriter, fallback=why)

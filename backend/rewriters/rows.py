"""What all rewriters that ask a language model share: the checks, a seed for each row, reading an answer.

A row is one answer that is asked for: one variant of one prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from ..errors import BadInput
from ..types import SEED_RANGE, Rewrite
from .prompting import Unparsable, parse


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
        return kept(prompt, rewriter, f"the answer {answer.why}{limit}")
    return Rewrite(answer.reason, answer.prompt, rewriter)


def kept(prompt: str, rewriter: str, why: str) -> Rewrite:
    """The user's prompt in place of a rewrite."""
    return Rewrite("", prompt, rewriter, fallback=why)

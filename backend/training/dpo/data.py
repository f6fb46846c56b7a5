"""Pairs of rewrites as DPO learns from them: token ids of prompts and of both answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...preferences.store import PairText, RewritePair, Store
from ...rewriters.prompting import FORM, PLAIN_FORM, Answer, Unparsable, answer_ids, parse, prompt_ids
from ..common.data import MAX_LOST
from ..common.pairs import TeachesNothing, pairs_apart_enough
from .config import DpoConfig


def usable_rewrites(store: Store, reward: str | None, margin: float) -> list[RewritePair]:
    """The pairs to learn from. Raises BadInput, with the reason, where none is left."""
    return pairs_apart_enough(
        store,
        store.all_rewrites(),
        reward,
        margin,
        "pairs of rewrites",
        of="rewrites",
        none="mine runs that tried several rewrites of a prompt",
        ties="lower margin",
    )


def encode(
    pairs: Sequence[RewritePair], tokenizer: Any, system: str, config: DpoConfig, log: Callable[[str], None]
) -> list[dict[str, list[int]]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each pair, as TRL's collator takes them.

    Pairs that are too long, or cannot be read back as answers, are left out. Raises TeachesNothing where too
    many are too long, or none is left.
    """
    rows, long, unread = [], 0, 0
    for pair in pairs:
        chosen, rejected = (answer_of(text, config.reasoning) for text in (pair.chosen, pair.rejected))
        if chosen is None or rejected is None or chosen == rejected:
            unread += 1
            continue
        row = {
            "prompt_ids": prompt_ids(tokenizer, pair.prompt, system=system),
            "chosen_ids": answer_ids(tokenizer, chosen),
            "rejected_ids": answer_ids(tokenizer, rejected),
        }
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if len(row["prompt_ids"]) + longest > config.max_length:
            long += 1
            continue
        rows.append(row)
    if not rows or long > MAX_LOST * len(pairs):
        raise TeachesNothing(
            f"of {len(pairs)} pairs {long} are longer than max_length={config.max_length} tokens and "
            f"{unread} cannot be written as answers; raise max_length, or mine other runs"
        )
    if long or unread:
        log(f"left out {long} pairs that are too long and {unread} that cannot be written as answers")
    return rows


def answer_of(text: PairText, reasoning: bool) -> Answer | None:
    """The answer that a rewriter would have written; None for one that could not be read back."""
    answer = Answer(" ".join(text.reason.split()) if reasoning else "", " ".join(text.rewrite.split()))
    written = (FORM if answer.reason else PLAIN_FORM).format(reason=answer.reason, prompt=answer.prompt)
    return None if isinstance(parse(written), Unparsable) else answer

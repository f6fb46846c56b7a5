"""The words of a rewrite that are not the user's own."""

from __future__ import annotations

import difflib
from collections import Counter


def mark_added_words(before: str, after: str) -> list[tuple[str, bool]]:
    """`after`, split into runs of words, each with whether they were added: [("a red circle", False), …].

    A word of `before` that only moved does not count as added. Case and punctuation are ignored.
    """
    old, new = before.split(), after.split()
    matcher = difflib.SequenceMatcher(None, [_bare(w) for w in old], [_bare(w) for w in new], autojunk=False)
    added = [True] * len(new)
    spare = Counter(_bare(w) for w in old)
    for block in matcher.get_matching_blocks():
        for i in range(block.b, block.b + block.size):
            added[i] = False
            spare[_bare(new[i])] -= 1
    for i, word in enumerate(new):
        if added[i] and spare[_bare(word)] > 0:
            added[i] = False
            spare[_bare(word)] -= 1
    runs: list[tuple[str, bool]] = []
    for word, is_added in zip(new, added, strict=True):
        if runs and runs[-1][1] == is_added:
            runs[-1] = (f"{runs[-1][0]} {word}", is_added)
        else:
            runs.append((word, is_added))
    return runs


def _bare(word: str) -> str:
    return word.casefold().strip(".,;:!?\"'()[]“”‘’") or word

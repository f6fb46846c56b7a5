"""What judges say is wrong with pictures, beside what the labels say: which faults are named, word for word.

A critique's faults are parted by semicolons, as the embedded detector's and a judge's that was tuned on it
are; a fault is named where the same words are (case and a full stop aside). Intervals are bootstrapped
over prompts (`statistics`). Beside the judges stands who does not look: for each picture the labels' own
critique of the next wrong picture of its prompt, where there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..rewards.vlm.judge import split_faults
from .statistics import format_interval, percentile_interval, prompt_weights

BLIND = "another wrong picture's of the prompt"
COLUMNS = ["judge", "critiques", "a true fault named", "of faults named, true", "of true faults, named"]
Critiques = Sequence[tuple[str, str, str]]  # prompt, what a judge says, what the labels say


def named_faults(critique: str) -> frozenset[str]:
    """The faults that a critique names, for comparison.

    >>> sorted(faults_of("There is no star.; I see  2 cats"))
    ['i see 2 cats', 'there is no star']
    """
    found = (" ".join(part.casefold().split()).rstrip(" .") for part in split_faults(critique))
    return frozenset(filter(None, found))


def critique_table(
    said: Mapping[str, Critiques], labels: Sequence[tuple[str, str]], seed: int = 0
) -> dict[str, Any]:
    """A table of `said`, each judge's; `labels` are (prompt, critique) of all wrong pictures."""
    rows = [[name, len(of), *_shares(of, seed)] for name, of in said.items()]
    blind = _blind(labels)
    rows += [[BLIND, len(blind), *_shares(blind, seed)]] if blind else []
    return {
        "title": "critiques of wrong pictures: the faults that the labels name",
        "columns": COLUMNS,
        "rows": rows,
    }


def _blind(labels: Sequence[tuple[str, str]]) -> Critiques:
    by_prompt: dict[str, list[str]] = defaultdict(list)
    for prompt, critique in labels:
        by_prompt[prompt].append(critique)
    return [
        (prompt, of[(i + 1) % len(of)], own)
        for prompt, of in by_prompt.items()
        if len(of) > 1
        for i, own in enumerate(of)
    ]


def _shares(said: Critiques, seed: int) -> list[str | None]:
    """The three figures, each a ratio of sums over prompts."""
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in said))
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), 4))  # critiques with a true fault, true faults named, named, true
    counts = np.zeros(len(prompts))
    for prompt, one, label in said:
        named, true = named_faults(one), named_faults(label)
        both = len(named & true)
        sums[place[prompt]] += (both > 0, both, len(named), len(true))
        counts[place[prompt]] += 1
    drawn = prompt_weights(len(prompts), seed)
    hits, both, named, true = sums.T
    found: list[str | None] = []
    for top, bottom in ((hits, counts), (both, named), (both, true)):
        with np.errstate(invalid="ignore"):
            mean = top.sum() / bottom.sum() if bottom.any() else None
            resampled = (drawn @ top) / (drawn @ bottom)
        found.append(None if mean is None else format_interval(percentile_interval(float(mean), resampled)))
    return found

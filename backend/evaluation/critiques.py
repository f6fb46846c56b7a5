"""Judges' critiques of wrong pictures compared with the labels: which faults they share, word for word.

The faults of a critique are separated by semicolons, as the embedded detector and judges tuned on it write
them. Two faults are the same if their words are, apart from case and a full stop. Intervals are bootstrapped
over prompts (`statistics`).

The last row is a baseline that does not look at the picture: its critique is the label of the next wrong
picture of the same prompt, if there is one.
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
Critiques = Sequence[tuple[str, str, str]]  # prompt, the judge's critique, the label's critique


def named_faults(critique: str) -> frozenset[str]:
    """The faults that a critique names, in lower case, for comparison.

    >>> sorted(faults_of("There is no star.; I see  2 cats"))
    ['i see 2 cats', 'there is no star']
    """
    found = (" ".join(part.casefold().split()).rstrip(" .") for part in split_faults(critique))
    return frozenset(filter(None, found))


def critique_table(
    critiques: Mapping[str, Critiques], labels: Sequence[tuple[str, str]], seed: int = 0
) -> dict[str, Any]:
    """A table with a row for each judge. `labels` are the (prompt, critique) of all wrong pictures."""
    rows = [[name, len(of), *_shares(of, seed)] for name, of in critiques.items()]
    blind = _blind_critiques(labels)
    rows += [[BLIND, len(blind), *_shares(blind, seed)]] if blind else []
    return {
        "title": "critiques of wrong pictures: the faults that the labels name",
        "columns": COLUMNS,
        "rows": rows,
    }


def _blind_critiques(labels: Sequence[tuple[str, str]]) -> Critiques:
    by_prompt: dict[str, list[str]] = defaultdict(list)
    for prompt, critique in labels:
        by_prompt[prompt].append(critique)
    return [
        (prompt, of[(i + 1) % len(of)], own)
        for prompt, of in by_prompt.items()
        if len(of) > 1
        for i, own in enumerate(of)
    ]


def _shares(critiques: Critiques, seed: int) -> list[str | None]:
    """The three shares of `COLUMNS` as text, each a ratio of sums over prompts."""
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in critiques))
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), 4))  # critiques with a true fault, true faults named, named, true
    counts = np.zeros(len(prompts))
    for prompt, one, label in critiques:
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

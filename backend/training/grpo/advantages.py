"""Advantages of GRPO with many rewards: each normalised in its group, weighted, summed, scaled by the batch.

Source: GRPO (arXiv 2402.03300), eq. 3 and below; GDPO (arXiv 2601.05242) for many rewards, as TRL's
`normalize_then_sum`; PromptRL (G-U-N/UniRL) for originals in the group. Departs from them: a reward whose
scores nearly tie in a group gives no signal there, because a tiny standard deviation would turn rounding into
signal; an answer that was never drawn counts as the group's worst picture, so that it can never beat a drawn
one; the batch's scale leaves out groups without signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...rewards.scales import normalise_group


@dataclass(frozen=True)
class Member:
    """One sample of a group."""

    scores: Mapping[str, float]  # by reward, higher is better, usually in 0..1; an original has no structure
    drawn: bool = True  # False for an answer that could not be read
    original: bool = False  # whether it is the prompt as typed


def group_sums(group: Sequence[Member], weights: Mapping[str, float], floor: float) -> list[float]:
    """Weighted sums of normalised rewards, one a member; they add up to 0. All 0: a group without signal.

    `floor` is the standard deviation up to which a reward's scores count as tied.
    """
    sums = [0.0] * len(group)
    for name, weight in weights.items():
        scores = {i: member.scores[name] for i, member in enumerate(group) if name in member.scores}
        if not scores:
            continue
        worst = min(scores.values())
        for i, member in enumerate(group):
            if not member.drawn:
                scores.setdefault(i, worst)
        for i, value in zip(scores, normalise_group(list(scores.values()), floor), strict=True):
            sums[i] += weight * value
    return sums


def advantages(groups: Sequence[Sequence[float]], clip: float) -> list[list[float]]:
    """Sums of groups (`group_sums`) over the batch's standard deviation (n - 1), at most `clip` from 0.

    The mean of the batch is 0 as each group's is, so nothing is subtracted. Groups without signal stay 0
    and do not count.
    """
    counted = [value for group in groups if has_signal(group) for value in group]
    std = (sum(value * value for value in counted) / max(1, len(counted) - 1)) ** 0.5
    if std == 0:
        return [[0.0] * len(group) for group in groups]
    return [[max(-clip, min(clip, value / std)) for value in group] for group in groups]


def has_signal(sums: Sequence[float]) -> bool:
    """Whether a group of `group_sums` prefers one member to another."""
    return any(value != 0 for value in sums)

"""The only place where rewards are called. Checks what they return, and names the reward in errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from .errors import RepriseError, RewardFailed
from .interfaces import CompositeReward, Critic, HasPreviewJudge, PreviewReward, Reward, TextReward
from .types import RewardSpec, Rewrite, Verdict

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def image_scores(reward: Reward | PreviewReward, images: Tensor, prompts: Sequence[str]) -> list[float]:
    """Scores of `images` (B, H, W, 3) in 0..1, one finite number each, against `prompts` (B).

    Raises RewardFailed if the reward raises, or returns another number of scores, NaN or infinity. Errors of
    this package, for example for a prompt that the judge cannot read, pass through unchanged.
    """
    return _checked(reward.spec.name, lambda: reward.score(images, prompts), len(prompts))


def named_scores(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> tuple[dict[str, list[float]], list[float]]:
    """(the scores of a mix's parts by their names, or the reward's own by its name; the scores that count) of
    `images` (B, H, W, 3), checked as in `image_scores`. Each part of a mix is called once."""
    if isinstance(reward, CompositeReward):
        parts = reward.parts(images, prompts)
        return parts, reward.combine(parts)
    scores = image_scores(reward, images, prompts)
    return {reward.spec.name: scores}, scores


def text_scores(reward: TextReward, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> list[float]:
    """Scores of rewrites, one each, checked as in `image_scores`."""
    return _checked(reward.spec.name, lambda: reward.score_text(rewrites, prompts), len(prompts))


def verdicts(critic: Critic, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
    """Verdicts on `images` (B, H, W, 3), one each, checked as in `image_scores`."""
    name = critic.spec.name
    return _counted(name, "verdicts", lambda: critic.criticize(images, prompts), len(prompts))


def clarities(reward: PreviewReward, images: Tensor, prompts: Sequence[str]) -> list[float] | None:
    """P(clear enough to judge) of previews (B, H, W, 3), one each, checked as in `image_scores`; None if the
    judge does not estimate it."""
    found = _named(reward.spec.name, lambda: reward.clarity(images, prompts))
    return None if found is None else _checked(reward.spec.name, lambda: found, len(prompts))


def judge_for_previews(judge: Reward) -> Reward:
    """The reward that scores previews for a judge: by default the judge itself."""
    return judge.preview_judge() if isinstance(judge, HasPreviewJudge) else judge


def reward_fingerprint(reward: Reward) -> str:
    """What determines its scores, for keys of stored results: its own fingerprint, or its name."""
    return reward.fingerprint or reward.spec.name


def rank(spec: RewardSpec, scores: Mapping[int, float]) -> list[int]:
    """The keys of `scores` from best to worst; of equal scores the smaller key comes first."""
    sign = 1.0 if spec.higher_is_better else -1.0
    return sorted(scores, key=lambda i: (-sign * scores[i], i))


def _checked(name: str, call: Callable[[], Sequence[float]], expected: int) -> list[float]:
    scores = _counted(name, "scores", lambda: map(float, call()), expected)
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            raise RewardFailed(name, f"score {i + 1} of {expected} is {score}")
    return scores


def _named(name: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except RepriseError:
        raise
    except Exception as cause:
        raise RewardFailed(name, f"{type(cause).__name__}: {cause}") from cause


def _counted(name: str, what: str, call: Callable[[], Iterable[T]], expected: int) -> list[T]:
    found = _named(name, lambda: list(call()))
    if len(found) != expected:
        raise RewardFailed(name, f"expected {expected} {what}, got {len(found)}")
    return found

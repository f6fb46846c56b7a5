"""What all rollouts have in common: samples of a prompt, their pictures and scores, figures, the record.

What is rolled out in a step follows from the run's seed, the stream's position and the weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ...core.errors import RewardFailed
from ...core.interfaces import TextReward
from ...core.scoring import text_scores
from ...core.types import Job, Rewrite
from ...rewards.scales import summarise_groups, to_unit_range
from ...rewards.text import count_words
from ...rewriters.decoding import Completion
from .prompts import PromptStream, TrainingPrompt
from .scoring import PictureScorer
from .settings import RolloutSettings


@dataclass
class Sample:
    """One text that may be drawn."""

    rewrite: Rewrite
    written: Completion | None  # None: this is the user's prompt as typed
    scores: dict[str, float] = field(
        default_factory=dict
    )  # as the rewards give them, means over the pictures
    pictures: list[str] = field(default_factory=list)  # their keys in the cache
    dropped: str | None = None  # why it does not count
    advantage: float | None = None  # None: not trained on

    @property
    def drawn(self) -> bool:
        """Whether it can be read, and so has pictures."""
        return True


@dataclass
class PromptGroup:
    """One prompt and its samples, whose pictures share their seeds."""

    position: int  # in the stream of prompts
    source: TrainingPrompt
    ids: list[int]  # of the prompt, as the model reads it
    seeds: list[int]


Group = TypeVar("Group", bound=PromptGroup)
W = TypeVar("W")  # the rewriter


class Rollouts(Generic[W, Group]):
    """Scores what a rewriter wrote. A method says what is written, and what follows from the scores."""

    def __init__(
        self,
        rewriter: W,
        scorer: PictureScorer,
        text_rewards: Mapping[str, TextReward],
        stream: PromptStream,
        settings: RolloutSettings,
    ):
        """`scorer` and `text_rewards` have all rewards, held-out ones too."""
        self.rewriter, self.scorer, self.text_rewards = rewriter, scorer, dict(text_rewards)
        self.stream, self.settings, self.timer = stream, settings, scorer.timer
        self.specs = {name: one.spec for name, one in [*text_rewards.items(), *scorer.rewards.items()]}

    def score_texts(self, samples: Sequence[tuple[Group, Sample]], rewrites: Sequence[Rewrite]) -> None:
        """Score `rewrites`, the samples' texts, by the rewards that read text."""
        prompts = [group.source.prompt for group, _ in samples]
        for name, reward in self.text_rewards.items():
            scores = text_scores(reward, rewrites, prompts)
            for (_, sample), score in zip(samples, scores, strict=True):
                sample.scores[name] = score

    def draw(self, samples: Sequence[tuple[Group, Sample]]) -> None:
        """Draw and score the samples' pictures; a sample for which a reward that counts fails is dropped."""
        jobs = [Job(sample.rewrite.prompt, seed) for group, sample in samples for seed in group.seeds]
        judge_prompts = [group.source.judge_prompt for group, _ in samples for _ in group.seeds]
        results = iter(self.scorer.score(jobs, judge_prompts))
        for group, sample in samples:
            pictures = [next(results) for _ in group.seeds]
            sample.pictures = [one.picture for one in pictures]
            for name in self.scorer.rewards:
                failed = next((one.failed[name] for one in pictures if name in one.failed), None)
                if failed is None:
                    sample.scores[name] = sum(one.scores[name] for one in pictures) / len(pictures)
                elif name in self.settings.rewards:
                    sample.dropped = failed

    def check_dropped(self, samples: Sequence[Sample]) -> None:
        """Raises RewardFailed where too many were dropped."""
        dropped = [sample.dropped for sample in samples if sample.dropped is not None]
        if len(dropped) > self.settings.max_dropped * len(samples):
            names = self.settings.rewards
            name = next((n for n in names if f"{self.specs[n].name!r}" in dropped[-1]), "a reward")
            raise RewardFailed(
                name,
                f"{len(dropped)} of {len(samples)} samples of a step had to be dropped, and "
                f"max_dropped={self.settings.max_dropped:g} allows no more; the last: {dropped[-1]}",
            )

    def scaled(self, sample: Sample) -> dict[str, float]:
        """Its scores by the rewards that count, each brought to 0..1 by its range."""
        names = [name for name in self.settings.rewards if name in sample.scores]
        return {name: to_unit_range(self.specs[name], sample.scores[name]) for name in names}

    def reward_of(self, sample: Sample) -> float:
        """The weighted mean of its scaled scores, for people; a picture that was never drawn counts as 0."""
        weights = self.settings.rewards
        return sum(weights[n] * value for n, value in self.scaled(sample).items()) / sum(weights.values())

    def figures(
        self, samples: Sequence[tuple[Group, Sample]], originals: Sequence[Sample]
    ) -> dict[str, float]:
        """Figures of what was written, and of the users' own prompts."""
        written = [sample for _, sample in samples]
        texts = [(group.position, sample.rewrite.prompt) for group, sample in samples if sample.drawn]
        outputs = [sample.written for sample in written if sample.written is not None]
        figures = {
            "reward": mean(self.reward_of(sample) for sample in written if sample.dropped is None),
            "cut_off": mean(float(one.truncated) for one in outputs),
            "dropped": sum(sample.dropped is not None for sample in written),
            "words": mean(float(count_words(sample.rewrite.prompt)) for sample in written if sample.drawn),
            "tokens": mean(float(len(one.ids)) for one in outputs),
            "alike": 1 - len(set(texts)) / max(1, len(texts)),  # texts that their group had already
        }
        for name in self.specs:
            scores = [sample.scores[name] for sample in written if name in sample.scores]
            if scores:
                found = summarise_groups([scores])
                figures |= {f"reward/{name}": found.mean, f"reward/{name}/std": found.std}
            unchanged = [sample.scores[name] for sample in originals if name in sample.scores]
            if unchanged:
                figures[f"original/{name}"] = mean(unchanged)
        return figures


def record_line(step: int, group: PromptGroup, sample: Sample, variant: int | str, **own: Any) -> str:
    """A sample's line of JSON in the record, with a method's `own` values; what is None is left out."""
    line = {
        "step": step,
        "prompt": group.source.prompt,
        "judged_as": group.source.judged_as or None,
        "position": group.position,
        "variant": variant,
        "rewrite": sample.rewrite.prompt if sample.drawn else None,
        "tokens": len(sample.written.ids) if sample.written else None,
        "seeds": group.seeds,
        "pictures": sample.pictures,
        "scores": sample.scores,
        "advantage": sample.advantage,
        "dropped": sample.dropped,
        **own,
    }
    return json.dumps({key: value for key, value in line.items() if value is not None})


def mean(values: Iterable[float]) -> float:
    """0 of none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0

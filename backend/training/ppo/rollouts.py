"""Rollouts of PPO: prompts -> refinements -> pictures -> how much better they score than the user's own.

Source: PRIP (Zhan et al. 2024, arXiv 2407.00247), section 3.4. Departs from it: its sums over pictures,
weighted by their probability, are means over `pictures` of them; both sides are drawn from the same seeds, so
that the difference is the words' and not the noise's; rewards are brought to one scale first.

A refinement is what the node would use of what was written: joined to the user's words, without a last phrase
that the limit cut off. What is rolled out in a step depends on the run's seed, the stream's position and the
weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import RewardFailed
from ...core.interfaces import TextReward
from ...core.scoring import text_scores
from ...core.seeds import seed_of
from ...core.types import Job, RewardSpec, Rewrite
from ...rewards.scales import RunningNorm, summarise_groups, to_unit_range
from ...rewards.text import count_words
from ...rewriters.decoding import Completion
from ...rewriters.prip.rewriter import PripRewriter
from ..common.offload import StageTimer
from ..rollouts.prompts import PromptStream, TrainingPrompt
from ..rollouts.scoring import PictureScorer, PictureScores

if TYPE_CHECKING:
    from .config import PpoConfig

Scores = dict[str, float]


@dataclass
class OriginalPictures:
    """The user's prompt itself, the pictures that refinements are to beat."""

    position: int
    asked: TrainingPrompt
    ids: list[int]  # as the encoder reads it
    begun: list[int]  # as the decoder goes on from it
    seeds: list[int]
    scores: Scores = field(default_factory=dict)  # as the rewards give them
    pictures: list[str] = field(default_factory=list)
    failed: str | None = None


@dataclass
class PpoSample:
    """One refinement; `gains` are its rewards' differences, scaled, and `gain` their weighted sum."""

    own: OriginalPictures
    variant: int
    written: Completion
    rewrite: Rewrite
    scores: Scores = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    gains: Scores = field(default_factory=dict)
    gain: float = 0.0
    dropped: str | None = None
    advantage: float | None = None  # mean over its tokens; None: not trained on


@dataclass
class PpoBatch:
    """What one step learns from, and what to log of it."""

    owns: list[OriginalPictures]
    samples: list[PpoSample]
    figures: dict[str, float]

    @property
    def valid(self) -> list[PpoSample]:
        return [sample for sample in self.samples if sample.dropped is None]


class PpoRollouts:
    """Makes batches. `specs` are those of all rewards, held-out ones too."""

    def __init__(
        self,
        rewriter: PripRewriter,
        scorer: PictureScorer,
        text_rewards: Mapping[str, TextReward],
        specs: Mapping[str, RewardSpec],
        stream: PromptStream,
        config: PpoConfig,
        timer: StageTimer,
    ):
        self.rewriter, self.scorer, self.text_rewards = rewriter, scorer, dict(text_rewards)
        self.specs, self.stream, self.config, self.timer = dict(specs), stream, config, timer
        self.norms = {name: RunningNorm() for name in config.rewards}  # of differences, where they scale

    def collect(self) -> PpoBatch:
        """The next batch. Raises RewardFailed where too many samples drop out."""
        owns, samples = self._write(self.stream.take(self.config.prompts_per_step))
        self._score_words(owns, samples)
        self._look(owns, samples)
        self._check_dropped(samples)
        self._compare([sample for sample in samples if sample.dropped is None])
        return PpoBatch(owns, samples, self._figures(owns, samples))

    def _write(
        self, taken: Sequence[tuple[int, TrainingPrompt]]
    ) -> tuple[list[OriginalPictures], list[PpoSample]]:
        """Refinements of the prompts, all drawn from the policy as it is."""
        config, rewriter = self.config, self.rewriter
        ids, begun = rewriter.encode_prompts([asked.prompt for _, asked in taken])
        owns = [
            OriginalPictures(
                position,
                asked,
                ids[asked.prompt],
                begun[asked.prompt],
                [seed_of(config.seed, "draw", asked.prompt, i) for i in range(config.pictures)],
            )
            for position, asked in taken
        ]
        rows = [(own, variant) for own in owns for variant in range(config.rewrites)]
        rows.sort(key=lambda row: len(row[0].begun))  # of like lengths together: less padding
        samples = []
        with self.timer("write"):
            pivots = rewriter.predict_pivots(ids)
            for start in range(0, len(rows), config.write_batch):
                part = rows[start : start + config.write_batch]
                keys = [seed_of(config.seed, "write", own.position, variant) for own, variant in part]
                seen = [pivots[own.asked.prompt] for own, _ in part]
                written = rewriter.generate(seen, [own.begun for own, _ in part], keys)
                for (own, variant), one in zip(part, written, strict=True):
                    rewrite = rewriter.to_rewrite(one, own.asked.prompt, own.begun)
                    samples.append(PpoSample(own, variant, one, rewrite))
        return owns, sorted(samples, key=lambda sample: (sample.own.position, sample.variant))

    def _score_words(self, owns: Sequence[OriginalPictures], samples: Sequence[PpoSample]) -> None:
        plain = [Rewrite("", own.asked.prompt, "none") for own in owns]
        # One to which nothing was added is the prompt, and no answer that is missing.
        added = [Rewrite("", sample.rewrite.prompt, sample.rewrite.rewriter) for sample in samples]
        asked = [own.asked.prompt for own in (*owns, *(sample.own for sample in samples))]
        for name, reward in self.text_rewards.items():
            scores = text_scores(reward, [*plain, *added], asked)
            for one, score in zip([*owns, *samples], scores, strict=True):
                one.scores[name] = score

    def _look(self, owns: Sequence[OriginalPictures], samples: Sequence[PpoSample]) -> None:
        """Draw and judge both sides; a score is the mean over the pictures."""
        sides = [(own, own.asked.prompt, own) for own in owns]
        sides += [(sample.own, sample.rewrite.prompt, sample) for sample in samples]
        jobs = [Job(prompt, seed) for own, prompt, _ in sides for seed in own.seeds]
        judge_prompts = [own.asked.judge_prompt for own, _, _ in sides for _ in own.seeds]
        judged = iter(self.scorer.score(jobs, judge_prompts))
        for own, _, one in sides:
            views = [next(judged) for _ in own.seeds]
            one.pictures = [view.picture for view in views]
            failed = self._take_scores(one.scores, views)
            if isinstance(one, OriginalPictures):
                one.failed = failed
            else:
                one.dropped = failed or own.failed

    def _take_scores(self, scores: Scores, views: Sequence[PictureScores]) -> str | None:
        """Means over the views; why there is none of a reward that counts."""
        why = None
        for name in self.scorer.rewards:
            failed = next((view.failed[name] for view in views if name in view.failed), None)
            if failed is None:
                scores[name] = sum(view.scores[name] for view in views) / len(views)
            elif name in self.config.rewards:
                why = failed
        return why

    def _check_dropped(self, samples: Sequence[PpoSample]) -> None:
        dropped = [sample.dropped for sample in samples if sample.dropped is not None]
        if len(dropped) > self.config.max_dropped * len(samples):
            name = next((n for n in self.config.rewards if f"{n!r}" in dropped[-1]), "a reward")
            raise RewardFailed(
                name,
                f"{len(dropped)} of {len(samples)} samples of a step had to be dropped, and "
                f"max_dropped={self.config.max_dropped:g} allows no more; the last: {dropped[-1]}",
            )

    def _compare(self, samples: Sequence[PpoSample]) -> None:
        """Their gains over the user's own pictures."""
        for name, weight in self.config.rewards.items():
            spec, norm = self.specs[name], self.norms[name]
            found = [
                to_unit_range(spec, one.scores[name]) - to_unit_range(spec, one.own.scores[name])
                for one in samples
            ]
            if self.config.scaling == "running":
                norm.update(found)
                found = [value / norm.std if norm.std > norm.floor else 0.0 for value in found]
            for sample, value in zip(samples, found, strict=True):
                sample.gains[name] = value
                sample.gain += weight * value

    def _reward_of(self, scores: Scores) -> float:
        """The weighted mean of scaled scores, for people."""
        weights = self.config.rewards
        total = sum(
            weight * to_unit_range(self.specs[name], scores[name]) for name, weight in weights.items()
        )
        return total / sum(weights.values())

    def _figures(self, owns: Sequence[OriginalPictures], samples: Sequence[PpoSample]) -> dict[str, float]:
        kept = [sample for sample in samples if sample.dropped is None]
        texts = [(sample.own.position, sample.rewrite.prompt) for sample in samples]
        figures = {
            "reward": _mean(self._reward_of(sample.scores) for sample in kept),
            "gain": _mean(sample.gain for sample in kept),
            "better": _mean(float(sample.gain > 0) for sample in kept),
            "unchanged": _mean(float(sample.rewrite.fallback is not None) for sample in samples),
            "cut_off": _mean(float(sample.written.truncated) for sample in samples),
            "dropped": sum(sample.dropped is not None for sample in samples),
            "words": _mean(float(count_words(sample.rewrite.prompt)) for sample in samples),
            "tokens": _mean(float(len(sample.written.ids)) for sample in samples),
            "alike": 1 - len(set(texts)) / len(texts),  # refinements that their prompt had already
        }
        for name in self.specs:
            values = [sample.scores[name] for sample in samples if name in sample.scores]
            plain = [own.scores[name] for own in owns if name in own.scores]
            if values:
                found = summarise_groups([values])
                figures |= {f"reward/{name}": found.mean, f"reward/{name}/std": found.std}
            if plain:
                figures[f"original/{name}"] = _mean(plain)
        return figures


def lines_of(step: int, batch: PpoBatch) -> Iterable[str]:
    """The record: a line of JSON for each user's prompt, as variant "original", and for each refinement."""
    for own in batch.owns:
        shared = {
            "step": step,
            "prompt": own.asked.prompt,
            "judged_as": own.asked.judged_as or None,
            "position": own.position,
            "seeds": own.seeds,
        }
        rows: list[dict[str, Any]] = [
            {
                "variant": "original",
                "rewrite": own.asked.prompt,
                "pictures": own.pictures,
                "scores": own.scores,
                "dropped": own.failed,
            }
        ]
        rows += [
            {
                "variant": sample.variant,
                "rewrite": sample.rewrite.prompt,
                "unchanged": sample.rewrite.fallback,
                "text": sample.written.text,
                "tokens": len(sample.written.ids),
                "cut": sample.written.truncated or None,
                "pictures": sample.pictures,
                "scores": sample.scores,
                "gains": sample.gains or None,
                "gain": sample.gain if sample.dropped is None else None,
                "advantage": sample.advantage,
                "dropped": sample.dropped,
            }
            for sample in batch.samples
            if sample.own is own
        ]
        for row in rows:
            line = {**shared, **row}
            yield json.dumps({key: value for key, value in line.items() if value is not None})


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0

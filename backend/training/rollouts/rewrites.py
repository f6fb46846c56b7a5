"""Rollouts of GRPO: prompts -> groups of rewrites -> pictures -> scores -> advantages, all on record.

Source: RePrompt (arXiv 2505.17540). Departs from its code: all rewrites of a prompt share their seeds,
so that an advantage measures the words and not the noise; an output that cannot be read is never drawn,
has the lowest structure score and counts as the group's worst picture; a reward that fails drops its
sample, and a step that drops too many stops the run; groups without signal are replaced by other prompts,
up to a cap (DAPO, arXiv 2503.14476); nothing is drawn or judged twice.

What is rolled out in a step depends on the run's seed, the stream's position and the weights alone. Where
there are several processes, groups are dealt out; then each has all, and all choose and normalise alike.
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
from ...rewards.scales import summarise_groups, to_unit_range
from ...rewards.text import count_words
from ...rewriters.prompting import prompt_ids
from ...rewriters.reprompt import Completion, RePromptRewriter
from ..common import distributed
from ..common.offload import StageTimer
from .advantages import Member, advantages, group_sums, has_signal
from .prompts import PromptStream, TrainingPrompt
from .scoring import PictureScorer

if TYPE_CHECKING:
    from ..grpo.config import GrpoConfig


@dataclass
class GrpoSample:
    """One rewrite of a group, or (`written` is None) the user's own prompt in it."""

    rewrite: Rewrite
    written: Completion | None
    scores: dict[str, float] = field(default_factory=dict)  # as the rewards give them
    pictures: list[str] = field(default_factory=list)
    dropped: str | None = None
    advantage: float | None = None  # None: not trained on

    @property
    def drawn(self) -> bool:
        return self.rewrite.fallback is None


@dataclass
class RolloutGroup:
    """All samples of one prompt; `sums` are those of `samples` that were not dropped."""

    position: int
    asked: TrainingPrompt
    ids: list[int]
    seeds: list[int]
    samples: list[GrpoSample]
    sums: list[float] = field(default_factory=list)
    replaced: bool = False

    @property
    def valid(self) -> list[GrpoSample]:
        return [sample for sample in self.samples if sample.dropped is None]


@dataclass
class RolloutBatch:
    """What one optimiser step learns from, a row for each rewrite, and what to log of it."""

    groups: list[RolloutGroup]
    figures: dict[str, float]
    lines: list[str]  # of the record

    @property
    def rows(self) -> list[tuple[RolloutGroup, GrpoSample]]:
        return [(g, s) for g in self.groups if not g.replaced for s in g.samples if s.written is not None]


class Rollouts:
    """Makes batches. `specs` are those of all rewards, held-out ones too."""

    def __init__(
        self,
        rewriter: RePromptRewriter,
        scorer: PictureScorer,
        text_rewards: Mapping[str, TextReward],
        specs: Mapping[str, RewardSpec],
        stream: PromptStream,
        config: GrpoConfig,
        timer: StageTimer,
    ):
        self.rewriter, self.scorer, self.text_rewards = rewriter, scorer, dict(text_rewards)
        self.specs, self.stream, self.config, self.timer = dict(specs), stream, config, timer

    def collect(self, step: int) -> RolloutBatch:
        """The batch of optimiser step `step` (1-based). Raises RewardFailed where too many drop out."""
        wanted, kept, flat = self.config.prompts_per_step, [], []
        for _ in range(self.config.resample + 1):
            for group in self._roll(self.stream.take(wanted - len(kept))):
                (kept if has_signal(group.sums) else flat).append(group)
            if len(kept) == wanted:
                break
        # A batch has its size: what the cap left without signal fills it up, and teaches nothing.
        missing = wanted - len(kept)
        for group in flat[missing:]:
            group.replaced = True
        groups = sorted(kept + flat, key=lambda group: group.position)
        used = [group for group in groups if not group.replaced]
        for group, values in zip(used, advantages([g.sums for g in used], self.config.advantage_clip)):
            for sample, value in zip(group.valid, values):  # behind them come the originals' copies
                sample.advantage = value if sample.written is not None else None
        figures = self._figures(groups, zero_variance=len(flat) / len(groups))
        return RolloutBatch(groups, figures, list(_lines(step, groups)))

    def _roll(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RolloutGroup]:
        groups = self.groups(taken)
        for group in groups:
            members = [self._member(sample) for sample in group.valid]
            extra = [m for m in members if m.original] * (self.config.originals - 1)
            group.sums = group_sums(members + extra, self.config.rewards, self.config.std_floor)
        return groups

    def groups(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RolloutGroup]:
        """What is written for prompts, drawn and scored. Raises RewardFailed where too many drop out."""
        groups = distributed.scatter(taken, self._make, self.timer("wait"))
        self._check_dropped([sample for group in groups for sample in group.samples])
        return groups

    def _make(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RolloutGroup]:
        """Groups with everything but their sums."""
        groups = self._write(taken)
        samples = [(group, sample) for group in groups for sample in group.samples]
        self._score_words(samples)
        self._look([(group, sample) for group, sample in samples if sample.drawn])
        return groups

    def _write(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RolloutGroup]:
        """Groups with their rewrites (and the original), all drawn from the policy as it is."""
        tokenizer, system, config = self.rewriter.tokenizer, self.rewriter.system, self.config
        groups = [
            RolloutGroup(
                position,
                asked,
                prompt_ids(tokenizer, asked.prompt, system=system),
                [seed_of(config.seed, "draw", position, i) for i in range(config.images)],
                [],
            )
            for position, asked in taken
        ]
        rows = [(group, variant) for group in groups for variant in range(config.rewrites)]
        with self.timer("write"):
            for start in range(0, len(rows), config.write_batch):
                part = rows[start : start + config.write_batch]
                keys = [seed_of(config.seed, "write", group.position, variant) for group, variant in part]
                written = self.rewriter.generate([group.ids for group, _ in part], keys)
                for (group, _), one in zip(part, written, strict=True):
                    group.samples.append(GrpoSample(self.rewriter.to_rewrite(one, group.asked.prompt), one))
        for group in groups:
            if config.originals:
                prompt = group.asked.prompt
                group.samples.append(GrpoSample(Rewrite("", prompt, "original"), None))
        return groups

    def _score_words(self, samples: Sequence[tuple[RolloutGroup, GrpoSample]]) -> None:
        written = [(group, sample) for group, sample in samples if sample.written is not None]
        prompts = [group.asked.prompt for group, _ in written]
        for name, reward in self.text_rewards.items():
            scores = text_scores(reward, [sample.rewrite for _, sample in written], prompts)
            for (_, sample), score in zip(written, scores, strict=True):
                sample.scores[name] = score

    def _look(self, samples: Sequence[tuple[RolloutGroup, GrpoSample]]) -> None:
        """Draw and judge; a sample's score is the mean over its pictures."""
        jobs = [Job(sample.rewrite.prompt, seed) for group, sample in samples for seed in group.seeds]
        judge_prompts = [group.asked.judge_prompt for group, _ in samples for _ in group.seeds]
        judged = iter(self.scorer.score(jobs, judge_prompts))
        for group, sample in samples:
            views = [next(judged) for _ in group.seeds]
            sample.pictures = [view.picture for view in views]
            for name in self.scorer.rewards:
                failed = next((view.failed[name] for view in views if name in view.failed), None)
                if failed is None:
                    sample.scores[name] = sum(view.scores[name] for view in views) / len(views)
                elif name in self.config.rewards:
                    sample.dropped = failed

    def _check_dropped(self, samples: Sequence[GrpoSample]) -> None:
        dropped = [sample.dropped for sample in samples if sample.dropped is not None]
        if len(dropped) > self.config.max_dropped * len(samples):
            name = next((n for n in self.config.rewards if f"{n!r}" in dropped[-1]), "a reward")
            raise RewardFailed(
                name,
                f"{len(dropped)} of {len(samples)} samples of a step had to be dropped, and "
                f"max_dropped={self.config.max_dropped:g} allows no more; the last: {dropped[-1]}",
            )

    def _member(self, sample: GrpoSample) -> Member:
        return Member(self._scaled(sample), sample.drawn, sample.written is None)

    def _scaled(self, sample: GrpoSample) -> dict[str, float]:
        """Its scores by the rewards that count, brought to one scale."""
        names = [name for name in self.config.rewards if name in sample.scores]
        return {name: to_unit_range(self.specs[name], sample.scores[name]) for name in names}

    def reward_of(self, sample: GrpoSample) -> float:
        """The weighted mean of its scaled scores, for people; what was never drawn has 0 for its picture."""
        weights = self.config.rewards
        return sum(weights[n] * value for n, value in self._scaled(sample).items()) / sum(weights.values())

    def _figures(self, groups: Sequence[RolloutGroup], zero_variance: float) -> dict[str, float]:
        """Over all that was rolled out, the replaced groups too."""
        written = [s for g in groups for s in g.samples if s.written is not None]
        originals = [s for g in groups for s in g.samples if s.written is None]
        texts = [(g.position, s.rewrite.prompt) for g in groups for s in g.samples if s.written and s.drawn]
        figures = {
            "reward": _mean(self.reward_of(s) for s in written if s.dropped is None),
            "zero_variance": zero_variance,
            "replaced": sum(group.replaced for group in groups),
            "unparsable": 1 - len(texts) / len(written),
            "cut_off": sum(s.written.truncated for s in written if s.written) / len(written),
            "dropped": sum(s.dropped is not None for g in groups for s in g.samples),
            "words": _mean(float(count_words(s.rewrite.prompt)) for s in written if s.drawn),
            "tokens": _mean(float(len(s.written.ids)) for s in written if s.written),
            "alike": 1 - len(set(texts)) / max(1, len(texts)),  # rewrites that their group had already
        }
        for name in self.specs:
            values = [
                [s.scores[name] for s in g.samples if s.written is not None and name in s.scores]
                for g in groups
            ]
            if any(values):
                found = summarise_groups([row for row in values if row])
                figures |= {f"reward/{name}": found.mean, f"reward/{name}/std": found.std}
            unchanged = [s.scores[name] for s in originals if name in s.scores]
            if unchanged:
                figures[f"original/{name}"] = _mean(unchanged)
        return figures


def _lines(step: int, groups: Sequence[RolloutGroup]) -> Iterable[str]:
    """The record: a line of JSON for each sample."""
    for group in groups:
        for number, sample in enumerate(group.samples):
            line: dict[str, Any] = {
                "step": step,
                "prompt": group.asked.prompt,
                "judged_as": group.asked.judged_as or None,
                "position": group.position,
                "variant": number if sample.written else "original",
                "reason": sample.rewrite.reason,
                "rewrite": sample.rewrite.prompt if sample.drawn else None,
                "unparsable": sample.rewrite.fallback,
                "text": sample.written.text if sample.written and not sample.drawn else None,
                "tokens": len(sample.written.ids) if sample.written else None,
                "seeds": group.seeds,
                "pictures": sample.pictures,
                "scores": sample.scores,
                "advantage": sample.advantage,
                "dropped": sample.dropped,
                "replaced": group.replaced,
            }
            yield json.dumps({key: value for key, value in line.items() if value is not None})


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0

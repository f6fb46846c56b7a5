"""Rewrites of prompts by a rewriter that gives a reason and a prompt; what cannot be read is never drawn.

All rewrites of a prompt are drawn from the same seeds, so that a difference of scores measures the words and
not the noise. Where there are several processes, prompts are dealt out, and then each process has all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ...core.seeds import seed_of
from ...rewriters.prompting import prompt_ids
from ...rewriters.reprompt import RePromptRewriter
from ..common import distributed
from .base import PromptGroup, Rollouts, Sample
from .prompts import TrainingPrompt
from .settings import RewriteSettings


@dataclass
class RewriteSample(Sample):
    """One rewrite, or the prompt as typed."""

    @property
    def drawn(self) -> bool:
        return self.rewrite.fallback is None


@dataclass
class RewriteGroup(PromptGroup):
    """All rewrites of one prompt."""

    samples: list[RewriteSample] = field(default_factory=list)

    @property
    def valid(self) -> list[RewriteSample]:
        return [sample for sample in self.samples if sample.dropped is None]


RewritesOf = TypeVar("RewritesOf", bound=RewriteGroup)


class RewriteRollouts(Rollouts[RePromptRewriter, RewritesOf]):
    """Prompts -> groups of rewrites, drawn and scored."""

    settings: RewriteSettings
    group_type: type[RewritesOf] = RewriteGroup  # type: ignore[assignment]

    def groups(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RewritesOf]:
        """What is written for prompts, drawn and scored. Raises RewardFailed where too many drop out."""
        groups = distributed.scatter(taken, self.make_groups, self.timer("wait"))
        self.check_dropped([sample for group in groups for sample in group.samples])
        return groups

    def make_groups(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RewritesOf]:
        """This process's share of `groups`."""
        groups = self.write(taken)
        samples = [(group, sample) for group in groups for sample in group.samples]
        written = [(group, sample) for group, sample in samples if sample.written is not None]
        self.score_texts(written, [sample.rewrite for _, sample in written])
        self.draw([(group, sample) for group, sample in samples if sample.drawn])
        return groups

    def write(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RewritesOf]:
        """Groups with their rewrites, all sampled from the policy as it is."""
        tokenizer, system = self.rewriter.tokenizer, self.rewriter.system
        settings, seed = self.settings, self.stream.seed
        groups = [
            self.group_type(
                position,
                source,
                prompt_ids(tokenizer, source.prompt, system=system),
                [seed_of(seed, "draw", position, i) for i in range(settings.images)],
            )
            for position, source in taken
        ]
        rows = [(group, variant) for group in groups for variant in range(settings.rewrites)]
        with self.timer("write"):
            for start in range(0, len(rows), settings.write_batch):
                part = rows[start : start + settings.write_batch]
                keys = [seed_of(seed, "write", group.position, variant) for group, variant in part]
                written = self.rewriter.generate([group.ids for group, _ in part], keys)
                for (group, _), one in zip(part, written, strict=True):
                    rewrite = self.rewriter.to_rewrite(one, group.source.prompt)
                    group.samples.append(RewriteSample(rewrite, one))
        return groups

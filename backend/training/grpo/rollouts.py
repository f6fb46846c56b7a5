"""Rollouts of GRPO: groups of rewrites with their advantages, on record.

Source: RePrompt (arXiv 2505.17540). Departs from its code: an answer that cannot be read is never drawn, has
the lowest structure score and counts as the group's worst picture; a reward that fails drops its sample, and
a step that drops too many stops the run; groups without signal are replaced by other prompts, up to a cap
(DAPO, arXiv 2503.14476); nothing is drawn or judged twice. All processes choose and normalise alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...core.types import Rewrite
from ..rollouts.base import record_line
from ..rollouts.prompts import TrainingPrompt
from ..rollouts.rewrites import RewriteGroup, RewriteRollouts, RewriteSample
from .advantages import Member, advantages, group_sums, has_signal
from .config import GrpoConfig


@dataclass
class GrpoGroup(RewriteGroup):
    """A group whose scores become advantages."""

    sums: list[float] = field(default_factory=list)  # of normalised scores, of each valid sample
    replaced: bool = False  # by another group, which has signal


@dataclass
class GrpoBatch:
    """What one optimiser step learns from, a row for each rewrite, and what to log of it."""

    groups: list[GrpoGroup]
    figures: dict[str, float]
    lines: list[str]  # of the record

    @property
    def rows(self) -> list[tuple[GrpoGroup, RewriteSample]]:
        return [(g, s) for g in self.groups if not g.replaced for s in g.samples if s.written is not None]


class GrpoRollouts(RewriteRollouts[GrpoGroup]):
    """Makes batches."""

    settings: GrpoConfig
    group_type = GrpoGroup

    def collect(self, step: int) -> GrpoBatch:
        """The batch of optimiser step `step`, from 1. Raises RewardFailed where too many are dropped."""
        wanted, signal, flat = self.settings.prompts_per_step, [], []
        for _ in range(self.settings.resample + 1):
            for group in self.groups(self.stream.take(wanted - len(signal))):
                self._normalise(group)
                (signal if has_signal(group.sums) else flat).append(group)
            if len(signal) == wanted:
                break
        # A batch has its size: what the cap left without signal fills it up, and teaches nothing.
        missing = wanted - len(signal)
        for group in flat[missing:]:
            group.replaced = True
        groups = sorted(signal + flat, key=lambda group: group.position)
        used = [group for group in groups if not group.replaced]
        for group, values in zip(used, advantages([g.sums for g in used], self.settings.advantage_clip)):
            for sample, value in zip(group.valid, values):  # behind them come the originals' copies
                sample.advantage = value if sample.written is not None else None
        figures = self._batch_figures(groups) | {"zero_variance": len(flat) / len(groups)}
        return GrpoBatch(groups, figures, list(_lines(step, groups)))

    def write(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[GrpoGroup]:
        """With the prompt as typed in each group, where it counts."""
        groups = super().write(taken)
        if self.settings.originals:
            for group in groups:
                group.samples.append(RewriteSample(Rewrite("", group.source.prompt, "original"), None))
        return groups

    def _normalise(self, group: GrpoGroup) -> None:
        """Set the group's sums; the original counts as many times as the settings say."""
        members = [Member(self.scaled(one), one.drawn, one.written is None) for one in group.valid]
        copies = [one for one in members if one.original] * (self.settings.originals - 1)
        group.sums = group_sums(members + copies, self.settings.rewards, self.settings.std_floor)

    def _batch_figures(self, groups: Sequence[GrpoGroup]) -> dict[str, float]:
        """Over all that was rolled out, the replaced groups too."""
        samples = [(group, sample) for group in groups for sample in group.samples]
        written = [(group, sample) for group, sample in samples if sample.written is not None]
        originals = [sample for _, sample in samples if sample.written is None]
        return self.figures(written, originals) | {
            "dropped": sum(sample.dropped is not None for _, sample in samples),
            "replaced": sum(group.replaced for group in groups),
            "unparsable": 1 - sum(sample.drawn for _, sample in written) / len(written),
        }


def _lines(step: int, groups: Sequence[GrpoGroup]) -> Iterator[str]:
    """The record: a line of JSON for each sample."""
    for group in groups:
        for number, sample in enumerate(group.samples):
            yield record_line(
                step,
                group,
                sample,
                number if sample.written else "original",
                reason=sample.rewrite.reason,
                unparsable=sample.rewrite.fallback,
                text=sample.written.text if sample.written and not sample.drawn else None,
                replaced=group.replaced,
            )

"""Rollouts of PPO: prompts -> refinements -> pictures -> how much better they score than the user's own.

Source: PRIP (Zhan et al. 2024, arXiv 2407.00247), section 3.4. Departs from it: its sums over pictures,
weighted by their probability, are means over `pictures` of them; both sides are drawn from the same seeds, so
that the difference is the words' and not the noise's; rewards are brought to one scale first.

A refinement is what the node would use of what was written: joined to the user's words, without a last phrase
that the limit cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.seeds import seed_of
from ...core.types import Rewrite
from ...rewards.scales import RunningNorm, to_unit_range
from ...rewriters.decoding import Completion
from ...rewriters.prip.rewriter import PripRewriter
from ..rollouts.base import PromptGroup, Rollouts, Sample, mean, record_line
from ..rollouts.prompts import TrainingPrompt
from .config import PpoConfig


@dataclass
class Refinement(Sample):
    """One refinement. `gains` are the differences of its scaled rewards from the original's."""

    written: Completion
    variant: int = 0
    gains: dict[str, float] = field(default_factory=dict)
    gain: float = 0.0  # their weighted sum


@dataclass
class RefinementGroup(PromptGroup):
    """A user's prompt, its refinements, and the original whose pictures they are to beat."""

    prefix: list[int]  # the beginning of the prompt that the decoder goes on from
    original: Sample
    samples: list[Refinement] = field(default_factory=list)


Row = tuple[RefinementGroup, Refinement]


@dataclass
class PpoBatch:
    """What one step learns from, and what to log of it."""

    groups: list[RefinementGroup]
    figures: dict[str, float]

    @property
    def rows(self) -> list[Row]:
        """All refinements."""
        return rows_of(self.groups)

    @property
    def valid(self) -> list[Row]:
        """Those that count."""
        return [(group, sample) for group, sample in self.rows if sample.dropped is None]


class PpoRollouts(Rollouts[PripRewriter, RefinementGroup]):
    """Makes batches."""

    settings: PpoConfig

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.norms = {name: RunningNorm() for name in self.settings.rewards}  # of differences, if they scale

    def collect(self) -> PpoBatch:
        """The next batch. Raises RewardFailed where too many samples drop out."""
        groups = self._write(self.stream.take(self.settings.prompts_per_step))
        rows = rows_of(groups)
        originals = [(group, group.original) for group in groups]
        # One to which nothing was added is the prompt, and no answer that is missing.
        added = [Rewrite("", sample.rewrite.prompt, sample.rewrite.rewriter) for _, sample in rows]
        plain = [group.original.rewrite for group in groups]
        self.score_texts([*originals, *rows], [*plain, *added])
        self.draw([*originals, *rows])
        for group, sample in rows:
            sample.dropped = sample.dropped or group.original.dropped
        self.check_dropped([sample for _, sample in rows])
        self._compare([(group, sample) for group, sample in rows if sample.dropped is None])
        return PpoBatch(groups, self._batch_figures(groups, rows))

    def _write(self, taken: Sequence[tuple[int, TrainingPrompt]]) -> list[RefinementGroup]:
        """Refinements of the prompts, all sampled from the policy as it is."""
        settings, rewriter, seed = self.settings, self.rewriter, self.stream.seed
        ids, prefixes = rewriter.encode_prompts([source.prompt for _, source in taken])
        groups = [
            RefinementGroup(
                position,
                source,
                ids[source.prompt],
                [seed_of(seed, "draw", source.prompt, i) for i in range(settings.pictures)],
                prefixes[source.prompt],
                Sample(Rewrite("", source.prompt, "none"), None),
            )
            for position, source in taken
        ]
        rows = [(group, variant) for group in groups for variant in range(settings.rewrites)]
        rows.sort(key=lambda row: len(row[0].prefix))  # of similar lengths together: less padding
        with self.timer("write"):
            pivots = rewriter.predict_pivots(ids)
            for start in range(0, len(rows), settings.write_batch):
                part = rows[start : start + settings.write_batch]
                keys = [seed_of(seed, "write", group.position, variant) for group, variant in part]
                seen = [pivots[group.source.prompt] for group, _ in part]
                written = rewriter.generate(seen, [group.prefix for group, _ in part], keys)
                for (group, variant), one in zip(part, written, strict=True):
                    rewrite = rewriter.to_rewrite(one, group.source.prompt, group.prefix)
                    group.samples.append(Refinement(rewrite, one, variant=variant))
        return groups

    def _compare(self, rows: Sequence[Row]) -> None:
        """Their gains over the originals' pictures."""
        for name, weight in self.settings.rewards.items():
            spec, norm = self.specs[name], self.norms[name]
            gains = [
                to_unit_range(spec, sample.scores[name]) - to_unit_range(spec, group.original.scores[name])
                for group, sample in rows
            ]
            if self.settings.scaling == "running":
                norm.update(gains)
                gains = [value / norm.std if norm.std > norm.floor else 0.0 for value in gains]
            for (_, sample), value in zip(rows, gains, strict=True):
                sample.gains[name] = value
                sample.gain += weight * value

    def _batch_figures(self, groups: Sequence[RefinementGroup], rows: Sequence[Row]) -> dict[str, float]:
        valid = [sample for _, sample in rows if sample.dropped is None]
        return self.figures(rows, [group.original for group in groups]) | {
            "gain": mean(sample.gain for sample in valid),
            "better": mean(float(sample.gain > 0) for sample in valid),
            "unchanged": mean(float(sample.rewrite.fallback is not None) for _, sample in rows),
        }


def rows_of(groups: Sequence[RefinementGroup]) -> list[Row]:
    return [(group, sample) for group in groups for sample in group.samples]


def lines_of(step: int, batch: PpoBatch) -> Iterable[str]:
    """The record: a line of JSON for each user's prompt, as variant "original", and for each refinement."""
    for group in batch.groups:
        yield record_line(step, group, group.original, "original")
        for sample in group.samples:
            yield record_line(
                step,
                group,
                sample,
                sample.variant,
                unchanged=sample.rewrite.fallback,
                text=sample.written.text,
                cut=sample.written.truncated or None,
                gains=sample.gains or None,
                gain=sample.gain if sample.dropped is None else None,
            )

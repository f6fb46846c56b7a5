"""Pairs from the scored pictures of one prompt: the best against the worst; close scores are dropped as ties.

A picture with several scores, for example by several raters, counts once, with their mean.

Source: PARM (Guo et al. 2025, arXiv 2501.13926), one good and one bad picture of a prompt. Departs from it:
pairs come from a search's own record, and scores need not be yes or no.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING

from ..core.errors import BadInput, plain
from ..core.types import RewardSpec
from .store import P, Pair, PairPicture, PairText, RewritePair, Store, canonical_reward_name, picture_name

if TYPE_CHECKING:
    from torch import Tensor

PAIR_BY = ("drawn", "prompt")


@dataclass(frozen=True)
class ScoredPicture:
    """A picture that a run drew and scored.

    `load` returns it as (H, W, 3) in 0..1, or None if its file is gone. `drawn_as` is the prompt that drew
    it. Pictures with equal `content` are the same picture; None: unknown.
    """

    load: Callable[[], Tensor | None]
    drawn_as: str
    score: float
    seed: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    reason: str | None = None  # of the rewrite; None: `drawn_as` was not rewritten from the prompt alone
    content: str | None = None


@dataclass(frozen=True)
class PictureGroup:
    """The pictures of one prompt in one run, scored by one reward.

    `prompt` is the prompt that the reward judged by; `user_prompt` is what the user typed, if that differs.
    `score_range` is the width of the reward's range. Raises BadInput for scores that are not finite, or so
    far apart that their margin is not.
    """

    prompt: str
    pictures: list[ScoredPicture]
    reward: str
    higher_is_better: bool
    score_range: float
    source: str
    run: str
    renderer: str | None = None
    user_prompt: str = ""

    def __post_init__(self) -> None:
        scores = [one.score for one in self.pictures]
        odd = [score for score in scores if not math.isfinite(score)]
        if not odd and scores and not math.isfinite(self.margin(max(scores), min(scores))):
            odd = [max(scores), min(scores)]
        if odd:
            got = " and ".join(map(str, odd[:2]))
            raise BadInput(
                f"{self.run}: expected finite scores of {self.reward!r} with a finite difference, got {got} "
                f"for {plain(self.prompt, 60)!r}; correct them, or leave these pictures out"
            )

    def margin(self, better: float, worse: float) -> float:
        """The distance of two scores as a fraction of the range; negative if `worse` is the better one."""
        return (better - worse if self.higher_is_better else worse - better) / self.score_range

    def rank(self, pictures: Iterable[ScoredPicture]) -> list[ScoredPicture]:
        """Sorted from best to worst; equal scores keep their order."""
        return sorted(pictures, key=lambda one: -one.score if self.higher_is_better else one.score)


def score_range(spec: RewardSpec | None) -> float:
    """The width of the reward's range; without a finite one 1, so that margins are score differences."""
    spread = abs(spec.high - spec.low) if spec else 0.0
    return spread if spread and math.isfinite(spread) else 1.0


class PairMiner:
    """Finds pairs in groups of pictures. Pictures go into the store at once; pairs are collected here.

    `by` is what the two pictures of a pair share. "drawn": the prompt that drew them. "prompt": the prompt
    that the judge read, whatever rewrites drew them. A renderer is then trained on that prompt. `margin` is
    the least margin of a pair, `most` the most pairs of one prompt. `pairs` and `rewrites` are what was found
    so far; `counts` says how many groups were read, and how many gave no pair and why.
    """

    def __init__(self, store: Store, by: str = "drawn", margin: float = 0.05, most: int = 1):
        assert by in PAIR_BY and margin >= 0 and most >= 1
        self.store, self.by, self.min_margin, self.max_pairs = store, by, margin, most
        self.pairs: list[Pair] = []
        self.rewrites: list[RewritePair] = []
        # groups; alone: with one picture; ties; gone: pictures missing; across: with several drawn prompts
        self.counts: Counter[str] = Counter()
        self.single_sources: set[str] = set()  # sources of groups with one picture only

    def add_group(self, group: PictureGroup) -> None:
        """Find the group's pairs of pictures and of rewrites; copy the pictures of pairs into the store."""
        self.counts["groups"] += 1
        shared: dict[str, list[ScoredPicture]] = {}
        for picture in group.pictures:
            shared.setdefault(picture.drawn_as if self.by == "drawn" else group.prompt, []).append(picture)
        self.counts["across"] += len(shared) > 1
        for condition, pictures in shared.items():
            self._pictures(group, condition, group.rank(_merge_repeated(pictures)))
        self._texts(group)

    def copy_pairs(self, other: Store, reward: str | None = None) -> None:
        """Copy another store's usable pairs with their pictures: those of `reward`, or of all rewards."""
        for pair in _usable_pairs(other, other.all_pairs(), reward):
            if not self._counts(pair):
                continue
            named = [pair.chosen.image, pair.rejected.image]
            images = [image for name in named if (image := other.image(name)) is not None]
            if [picture_name(image) for image in images] != named:
                self.counts["gone"] += 1
                continue
            for image in images:
                self.store.put_image(image)
            self.pairs.append(pair)
        rewrites = _usable_pairs(other, other.all_rewrites(), reward)
        self.rewrites += [pair for pair in rewrites if self._counts(pair)]

    def _counts(self, pair: Pair | RewritePair) -> bool:
        self.counts["groups"] += 1
        self.counts["ties"] += not self._apart(pair.margin)
        return self._apart(pair.margin)

    def _pictures(self, group: PictureGroup, condition: str, ranked: Sequence[ScoredPicture]) -> None:
        if len(ranked) < 2:
            self.counts["alone"] += 1
            self.single_sources.add(group.source)
        for best, worst in list(zip(ranked, reversed(ranked)))[: min(self.max_pairs, len(ranked) // 2)]:
            margin = group.margin(best.score, worst.score)
            if not self._apart(margin):
                self.counts["ties"] += 1
                continue
            images = [picture.load() for picture in (best, worst)]
            if any(image is None for image in images):
                self.counts["gone"] += 1
                continue
            if len({picture_name(image) for image in images if image is not None}) < 2:
                self.counts["ties"] += 1  # twice the same picture
                continue
            chosen, rejected = (
                PairPicture(
                    image=self.store.put_image(image),
                    drawn_as=one.drawn_as,
                    score=one.score,
                    seed=one.seed,
                    scores=one.scores,
                )
                for one, image in zip((best, worst), images)
                if image is not None
            )
            self.pairs.append(
                Pair(
                    prompt=group.prompt,
                    condition=condition,
                    chosen=chosen,
                    rejected=rejected,
                    reward=group.reward,
                    margin=margin,
                    source=group.source,
                    run=group.run,
                    renderer=group.renderer,
                )
            )

    def _texts(self, group: PictureGroup) -> None:
        """The best against the worst rewrite, by the mean score of the pictures each drew."""
        drawn: dict[tuple[str, str], list[float]] = {}
        for one in group.pictures:
            if one.reason is not None:
                drawn.setdefault((one.reason, one.drawn_as), []).append(one.score)
        if len(drawn) < 2:
            return
        texts = [
            PairText(reason=reason, rewrite=rewrite, score=mean(scores), pictures=len(scores))
            for (reason, rewrite), scores in drawn.items()
        ]
        texts.sort(key=lambda text: -text.score if group.higher_is_better else text.score)
        margin = group.margin(texts[0].score, texts[-1].score)
        if self._apart(margin):
            self.rewrites.append(
                RewritePair(
                    prompt=group.user_prompt or group.prompt,
                    chosen=texts[0],
                    rejected=texts[-1],
                    reward=group.reward,
                    margin=margin,
                    source=group.source,
                    run=group.run,
                    renderer=group.renderer,
                )
            )

    def _apart(self, margin: float) -> bool:
        return margin > 0 and margin >= self.min_margin


def _merge_repeated(pictures: Iterable[ScoredPicture]) -> list[ScoredPicture]:
    """Each picture once; several scores of one picture become their mean, reward by reward."""
    found: dict[object, list[ScoredPicture]] = {}
    for one in pictures:
        found.setdefault(one.content or id(one), []).append(one)
    return [_mean(same) if len(same) > 1 else same[0] for same in found.values()]


def _mean(same: Sequence[ScoredPicture]) -> ScoredPicture:
    names = dict.fromkeys(name for one in same for name in one.scores)
    scores = {name: mean(one.scores[name] for one in same if name in one.scores) for name in names}
    return replace(same[0], score=mean(one.score for one in same), scores=scores)


def _usable_pairs(store: Store, recorded: Sequence[P], reward: str | None) -> Iterator[P]:
    for one in dict.fromkeys(pair.reward for pair in recorded):
        if reward is None or canonical_reward_name(reward) == one:
            yield from store.usable(recorded, one)

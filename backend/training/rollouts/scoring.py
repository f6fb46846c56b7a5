"""Where a training's pictures are drawn and judged: each (prompt, seed) once, each (picture, words) once.

Everything goes through the content-addressed cache, which is also the record: a rollout names its
pictures by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ...core.errors import Interrupted, RenderFailed, RepriseError
from ...core.interfaces import Renderer, Reward
from ...core.scoring import image_scores
from ...core.types import Job
from ...storage.cache import Cache, picture_key, round_to_8_bits
from ..common.offload import StageTimer

if TYPE_CHECKING:
    from torch import Tensor


IN_A_ROW = 8  # failures of a reward after which it is not asked for the rest of a batch
View = tuple[Job, str]  # a picture, and the words that it is compared with


@dataclass
class PictureScores:
    """One picture's scores, as the rewards give them; `failed` says of the others why they have none."""

    picture: str  # its key in the cache
    scores: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class PictureScorer:
    """Draws and judges at most `batch` pictures at a time.

    With `overlap`, for a renderer that draws elsewhere, one batch is judged while the next is drawn.

    A call's pictures enter the cache together, and then its scores: after a kill it finds all or nothing,
    so that what is drawn or judged again goes through the models in batches of the same make-up. These
    decide the last bits.
    """

    def __init__(
        self,
        renderer: Renderer,
        rewards: Mapping[str, Reward],
        cache: Cache,
        timer: StageTimer,
        batch: int = 64,
        overlap: bool = False,
    ):
        self.renderer, self.rewards, self.cache, self.timer = renderer, dict(rewards), cache, timer
        self.batch, self.overlap = batch, overlap
        self.drawn = self.reused = 0  # pictures; the caller's to reset

    def score(self, jobs: Sequence[Job], judge_prompts: Sequence[str]) -> list[PictureScores]:
        """Scores of the pictures of `jobs` against the users' words, one each."""
        views = list(zip(jobs, judge_prompts, strict=True))
        found: dict[View, PictureScores] = {}
        for job, judge_prompt in dict.fromkeys(views):
            scores = self.cache.get_scores(self._scores_key(job, judge_prompt)) or {}
            found[job, judge_prompt] = PictureScores(
                self.key(job), {n: scores[n] for n in self.rewards if n in scores}
            )
        todo = [view for view, judged in found.items() if len(judged.scores) < len(self.rewards)]
        fresh: dict[Job, Tensor] = {}
        with _judging_thread() if self.overlap else nullcontext() as pool:
            waiting = []
            for start in range(0, len(todo), self.batch):
                part = todo[start : start + self.batch]
                pictures = self._pictures([job for job, _ in part], fresh)
                waiting.append(
                    pool.submit(self._score, part, pictures).result
                    if pool
                    else partial(self._score, part, pictures)
                )
            for job, image in fresh.items():
                self.cache.put_image(self.key(job), image)
            if waiting:
                with self.timer("score"):  # what is left of it, where it overlaps
                    judged = [one for wait in waiting for one in wait()]
                    found |= zip(todo, judged)
        for view in todo:
            self.cache.put_scores(self._scores_key(*view), found[view].scores)
        self.drawn += len(fresh)
        self.reused += len({job for job, _ in views}) - len(fresh)
        return [found[view] for view in views]

    def key(self, job: Job) -> str:
        """A picture's name: what decides its pixels."""
        return picture_key(self.renderer.fingerprint, job)

    def _scores_key(self, job: Job, judge_prompt: str) -> str:
        return Cache.key("scores", self.key(job), judge_prompt)

    def _pictures(self, jobs: list[Job], fresh: dict[Job, Tensor]) -> list[Tensor]:
        """One each, drawn where neither the cache nor `fresh` has it; what is drawn enters `fresh`."""
        found = {}
        for job in jobs:
            entry = None if job in fresh else self.cache.get_image(self.key(job))
            if entry is not None:
                found[job] = entry[0]
        todo = [job for job in dict.fromkeys(jobs) if job not in found and job not in fresh]
        if todo:
            with self.timer("render"):
                drawn = self.renderer.render(todo).images
            for job, image in zip(todo, drawn, strict=True):
                if image is None:
                    raise RenderFailed(f"{self.renderer.name} gave no picture for {job.prompt[:80]!r}")
                fresh[job] = round_to_8_bits(image)
        return [found[job] if job in found else fresh[job] for job in jobs]

    def _score(self, views: list[View], pictures: list[Tensor]) -> list[PictureScores]:
        import torch

        images, judge_prompts = torch.stack(pictures), [judge_prompt for _, judge_prompt in views]
        judged = [PictureScores(self.key(job)) for job, _ in views]
        for name, reward in self.rewards.items():
            for one, score in zip(judged, self._rate(reward, images, judge_prompts), strict=True):
                if isinstance(score, str):
                    one.failed[name] = score
                else:
                    one.scores[name] = score
        return judged

    def _rate(self, reward: Reward, images: Tensor, judge_prompts: list[str]) -> list[float | str]:
        """A score each; where the reward fails, the reason, found by asking for one picture at a time."""
        try:
            return list(image_scores(reward, images, judge_prompts))
        except Interrupted:
            raise
        except RepriseError as error:
            if len(judge_prompts) == 1:
                return [str(error)]
        rated: list[float | str] = []
        failures = 0  # in a row
        for i, judge_prompt in enumerate(judge_prompts):
            try:
                rated += image_scores(reward, images[i : i + 1], [judge_prompt])
                failures = 0
            except Interrupted:
                raise
            except RepriseError as error:
                rated.append(str(error))
                failures += 1
                if failures == IN_A_ROW:  # it is down: no more waiting for the rest of the batch
                    return rated + [str(error)] * (len(judge_prompts) - len(rated))
        return rated


def _judging_thread() -> ThreadPoolExecutor:
    """One thread, on the GPU of this one: a new thread would be on the first."""
    import torch

    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))

"""Where a training's pictures are drawn and judged: each (prompt, seed) once, each (picture, words) once.

Everything goes through the content-addressed cache, which is also the record: a rollout names its
pictures by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..cache import Cache
from ..errors import Interrupted, RenderFailed, RepriseError
from ..interfaces import Renderer, Reward
from ..judging import image_scores
from ..types import Job
from .phases import Phases

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Judged:
    """One picture's scores, as the rewards give them; `failed` says of the others why they have none."""

    picture: str  # its key in the cache
    scores: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Studio:
    """Draws at most `batch` jobs a call. A reward that fails on more than a share of `patience` of the
    pictures is not asked for the rest."""

    def __init__(self, renderer: Renderer, rewards: Mapping[str, Reward], cache: Cache, phases: Phases,
                 batch: int = 64, patience: float = 0.25):
        self.renderer, self.rewards, self.cache, self.phases = renderer, dict(rewards), cache, phases
        self.batch, self.patience = batch, patience
        self.drawn = self.reused = 0  # pictures; the caller's to reset

    def look(self, jobs: Sequence[Job], meanings: Sequence[str]) -> list[Judged]:
        """Scores of the pictures of `jobs` against the users' words, one each."""
        views = list(zip(jobs, meanings, strict=True))
        found: dict[tuple[Job, str], Judged] = {}
        for job, meaning in dict.fromkeys(views):
            scores = self.cache.get_scores(self._scores_key(job, meaning)) or {}
            found[job, meaning] = Judged(self.key(job), {n: scores[n] for n in self.rewards if n in scores})
        todo = [view for view, judged in found.items() if len(judged.scores) < len(self.rewards)]
        pictures = self._pictures(list(dict.fromkeys(job for job, _ in todo)))
        self.reused += len({job for job, _ in found}) - len({job for job, _ in todo})
        if todo:
            with self.phases("score"):
                self._score(todo, found, pictures)
        return [found[view] for view in views]

    def key(self, job: Job) -> str:
        """A picture's name: what decides its pixels."""
        return Cache.key("image", self.renderer.fingerprint, job.prompt, job.seed)

    def _scores_key(self, job: Job, meaning: str) -> str:
        return Cache.key("scores", self.key(job), meaning)

    def _pictures(self, jobs: list[Job]) -> dict[Job, Tensor]:
        found = {}
        for job in jobs:
            entry = self.cache.get_image(self.key(job))
            if entry is not None:
                found[job] = entry[0]
        todo = [job for job in jobs if job not in found]
        self.reused += len(found)
        self.drawn += len(todo)
        for start in range(0, len(todo), self.batch):
            part = todo[start : start + self.batch]
            with self.phases("render"):
                drawn = self.renderer.render(part).images
            for job, image in zip(part, drawn, strict=True):
                if image is None:
                    raise RenderFailed(f"{self.renderer.name} gave no picture for {job.prompt[:80]!r}")
                self.cache.put_image(self.key(job), image)
                found[job] = image.float().clamp(0, 1).mul(255).round() / 255  # as it comes back out of a PNG
        return found

    def _score(self, todo: list[tuple[Job, str]], found: dict[tuple[Job, str], Judged],
               pictures: dict[Job, Tensor]) -> None:
        import torch

        images, meanings = torch.stack([pictures[job] for job, _ in todo]), [m for _, m in todo]
        for name, reward in self.rewards.items():
            for view, score in zip(todo, self._rate(reward, images, meanings), strict=True):
                if isinstance(score, str):
                    found[view].failed[name] = score
                else:
                    found[view].scores[name] = score
        for job, meaning in todo:
            self.cache.put_scores(self._scores_key(job, meaning), found[job, meaning].scores)

    def _rate(self, reward: Reward, images: Tensor, meanings: list[str]) -> list[float | str]:
        """A score each; where the reward fails, the reason, found by asking for one picture at a time."""
        try:
            return list(image_scores(reward, images, meanings))
        except Interrupted:
            raise
        except RepriseError as error:
            if len(meanings) == 1:
                return [str(error)]
        rated: list[float | str] = []
        failures = 0
        for i, meaning in enumerate(meanings):
            try:
                rated += image_scores(reward, images[i : i + 1], [meaning])
            except Interrupted:
                raise
            except RepriseError as error:
                rated.append(str(error))
                failures += 1
                if failures > self.patience * len(meanings):  # it is down: no more waiting
                    return rated + [str(error)] * (len(meanings) - len(rated))
        return rated

"""Where a training's pictures are drawn and scored: each (prompt, seed) once, each (picture, prompt) once.

Everything goes through the content-addressed cache, which is also the record: a rollout names its
pictures by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import Interrupted, RenderFailed, RepriseError
from ...core.interfaces import Renderer, Reward
from ...core.scoring import image_scores
from ...core.types import Job
from ...factory import open_renderer
from ...reports.training import PICTURES
from ...storage.cache import Cache, picture_key, round_to_8_bits
from ..common import distributed
from ..common.offload import GpuOffload, OffloadRole, StageTimer, judge_modules, renderer_modules
from .settings import DrawingSettings

if TYPE_CHECKING:
    from torch import Tensor


IN_A_ROW = 8  # failures of a reward after which the rest of a batch is not sent to it
View = tuple[Job, str]  # a picture, and the prompt that it is compared with


@dataclass
class PictureScores:
    """One picture's scores, as the rewards give them."""

    picture: str  # its key in the cache
    scores: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # reward without a score -> why


class PictureScorer:
    """Draws and scores at most `batch` pictures at a time.

    With `overlap`, for a renderer that draws elsewhere, one batch is scored while the next is drawn.

    A call's pictures enter the cache together, and then its scores. So after a kill all of them are there, or
    none, and what is drawn or scored again goes through the models in the same batches, which decide the last
    bits.
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
        self.drawn = self.reused = 0  # pictures of a step

    def start_step(self) -> None:
        """Begin to count a step's pictures and seconds."""
        self.timer.seconds.update(dict.fromkeys(self.timer.seconds, 0.0))
        self.drawn = self.reused = 0

    def step_figures(self) -> dict[str, float]:
        """Seconds and pictures since `start_step`, the pictures of all processes together."""
        seconds = self.timer.seconds
        drawn, reused = distributed.all_sum(self.drawn, self.reused)
        figures = {f"seconds/{name}": round(value, 3) for name, value in seconds.items()}
        figures |= {"pictures": drawn, "pictures_reused": reused}
        if seconds["render"]:
            figures["pictures_per_second"] = round(drawn / seconds["render"], 3)
        return figures

    def score(self, jobs: Sequence[Job], judge_prompts: Sequence[str]) -> list[PictureScores]:
        """The scores of the pictures of `jobs`, each against its prompt of `judge_prompts`."""
        views = list(zip(jobs, judge_prompts, strict=True))
        found: dict[View, PictureScores] = {}
        for job, judge_prompt in dict.fromkeys(views):
            scores = self.cache.get_scores(self._scores_key(job, judge_prompt)) or {}
            found[job, judge_prompt] = PictureScores(
                self.key(job), {n: scores[n] for n in self.rewards if n in scores}
            )
        todo = [view for view, one in found.items() if len(one.scores) < len(self.rewards)]
        fresh: dict[Job, Tensor] = {}
        with _scoring_thread() if self.overlap else nullcontext() as pool:
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
                    found |= zip(todo, [one for wait in waiting for one in wait()])
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
        """The picture of each job. What neither the cache nor `fresh` has is drawn, and put into `fresh`."""
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
        results = [PictureScores(self.key(job)) for job, _ in views]
        for name, reward in self.rewards.items():
            for one, score in zip(results, self._rate(reward, images, judge_prompts), strict=True):
                if isinstance(score, str):
                    one.failed[name] = score
                else:
                    one.scores[name] = score
        return results

    def _rate(self, reward: Reward, images: Tensor, judge_prompts: list[str]) -> list[float | str]:
        """A score of each picture, or why there is none: of a failed batch, pictures are scored singly."""
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


def open_scorer(
    settings: DrawingSettings,
    run: Path,
    device: str,
    rewards: Mapping[str, Reward],
    policy: OffloadRole,
) -> PictureScorer:
    """The renderer, the `rewards` that look at pictures, and the cache of a policy's training.

    With `settings.offload` on a GPU they and the `policy` take turns there.
    """
    renderer = open_renderer(settings.renderer)
    elsewhere = renderer.capabilities.elsewhere
    offload = None
    if settings.offload and device != "cpu":
        judges = OffloadRole(lambda: judge_modules(rewards.values()))
        # While another process draws, the judges are at work.
        drawing = judges if elsewhere else OffloadRole(lambda: renderer_modules(renderer))
        stages = {"write": policy, "update": policy, "render": drawing, "score": judges}
        offload = GpuOffload(device, stages)
    cache = Cache(run / PICTURES, int(settings.keep_gb * 2**30))
    return PictureScorer(renderer, rewards, cache, StageTimer(offload), settings.renderer.batch, elsewhere)


def _scoring_thread() -> ThreadPoolExecutor:
    """One thread, on the GPU of this one: a new thread would be on the first."""
    import torch

    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))

"""The queue: requests wait in a bounded line, and one thread takes them through the rewards in batches.

What waits is taken together as far as it makes a batch; a lone request never waits for company. Where a
batch fails, each of its requests goes again by itself: nobody pays for another's prompt. A reward's scores
do not depend on the batch, so neither shows in an answer.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import RepriseError
from ..core.interfaces import Critic, Reward
from ..core.scoring import image_scores, verdicts
from ..net.reward_protocol import RewardInfo
from .pictures import decoded

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class QueueFull(RepriseError):
    """The line is full, or the server is stopping: nothing was done, later or elsewhere it may be."""


@dataclass
class RewardResults:
    """By reward: what it found, one entry per picture (scores or verdicts); or why it found nothing."""

    found: dict[str, list[Any]] = field(default_factory=dict)
    errors: dict[str, RepriseError] = field(default_factory=dict)


@dataclass
class QueuedRequest:
    """One request. `pictures` are opened, not decoded: what waits is as small as it came."""

    pictures: list[Image]
    prompts: list[str]
    rewards: list[str]
    criticize: bool = False
    tensors: list[Tensor] = field(default_factory=list)  # (H, W, 3) each, while it is in work
    answer: RewardResults = field(default_factory=RewardResults)
    done: Future[RewardResults] = field(default_factory=Future)

    @property
    def pixels(self) -> int:
        return sum(picture.width * picture.height for picture in self.pictures)


class BatchingQueue:
    """Owns `rewards` by name. At most `waiting` requests stand in the queue; a batch is whole requests, up to
    `batch` pictures and `pixels` pixels, or one request alone."""

    def __init__(self, rewards: Iterable[Reward], *, waiting: int = 64, batch: int = 16, pixels: int = 2**25):
        self.rewards: dict[str, Reward] = {reward.spec.name: reward for reward in rewards}
        self.waiting, self.batch, self.pixels = waiting, batch, pixels
        self.answered = 0
        self._line: deque[QueuedRequest] = deque()
        self._taken: list[QueuedRequest] = []
        self._changed = threading.Condition()
        self._open = True
        self._worker = threading.Thread(target=self._work, name="reprise-rewards", daemon=True)
        self._worker.start()

    def cards(self) -> list[RewardInfo]:
        """What the rewards' numbers mean, in their order."""
        return [
            RewardInfo(
                name=name,
                low=reward.spec.low,
                high=reward.spec.high,
                reads=reward.spec.reads,
                higher_is_better=reward.spec.higher_is_better,
                critic=isinstance(reward, Critic),
            )
            for name, reward in self.rewards.items()
        ]

    def __len__(self) -> int:
        """Requests that stand in the queue."""
        return len(self._line)

    def submit(self, job: QueuedRequest) -> Future[RewardResults]:
        """Put a request in the queue. Its future fails with BadInput where a picture is damaged.

        Raises TurnedAway. Cancelling the future takes a request out that is not in work yet.
        """
        with self._changed:
            if not self._open:
                raise QueueFull("the server is stopping")
            if len(self._line) >= self.waiting:
                raise QueueFull(f"{self.waiting} requests are waiting already; try again later")
            self._line.append(job)
            self._changed.notify()
        return job.done

    def close(self, patience: float = 0.0) -> None:
        """Turn away all who wait, and the batch in work where it takes more than `patience` seconds."""
        with self._changed:
            self._open = False
            left = [*self._line]
            self._line.clear()
            self._changed.notify()
        for job in left:
            _finish(job, error=QueueFull("the server is stopping"))
        self._worker.join(patience)
        for job in [*self._taken]:
            _finish(job, error=QueueFull("the server is stopping"))

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._serve(jobs)
            except Exception as error:  # a fault of ours: it goes to those who wait, and the queue stays open
                for job in jobs:
                    _finish(job, error=error)
            with self._changed:
                self._taken = []

    def _next(self) -> list[QueuedRequest]:
        """The requests of the next batch, in the order in which they came; empty when the queue is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._line or not self._open)
                taken, images, pixels = self._taken, 0, 0
                while self._line:
                    job = self._line[0]
                    images, pixels = images + len(job.pictures), pixels + job.pixels
                    full = images > self.batch or pixels > self.pixels
                    if taken and (full or job.criticize != taken[0].criticize):
                        break
                    self._line.popleft()
                    if job.done.set_running_or_notify_cancel():  # else whoever asked has hung up
                        taken.append(job)
                if taken or not self._open:
                    return taken

    def _serve(self, jobs: list[QueuedRequest]) -> None:
        whole = []
        for job in jobs:
            try:
                job.tensors = decoded(job.pictures)
            except RepriseError as error:
                _finish(job, error=error)
            else:
                whole.append(job)
        for name in self.rewards:
            self._look(name, [job for job in whole if name in job.rewards])
        for job in whole:
            job.tensors = []
            self.answered += not job.done.done()  # counted before it is told
            _finish(job)

    def _look(self, name: str, jobs: list[QueuedRequest]) -> None:
        """One reward's part of the answers."""
        if not jobs:
            return
        call: Callable[..., list[Any]] = verdicts if jobs[0].criticize else image_scores
        images = [image for job in jobs for image in job.tensors]
        prompts = [prompt for job in jobs for prompt in job.prompts]
        try:
            found = iter(by_size(images, prompts, partial(call, self.rewards[name])))
        except RepriseError as error:
            if len(jobs) == 1:
                jobs[0].answer.errors[name] = error
                return
            for job in jobs:
                self._look(name, [job])
            return
        for job in jobs:
            job.answer.found[name] = [next(found) for _ in job.prompts]


def by_size(
    images: Sequence[Tensor], prompts: Sequence[str], call: Callable[[Tensor, list[str]], list[Any]]
) -> list[Any]:
    """`call` on the pictures (H, W, 3) of each size together -> its results in the order of `images`."""
    import torch

    groups: dict[Any, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[image.shape].append(i)
    results: dict[int, Any] = {}
    for rows in groups.values():
        found = call(torch.stack([images[i] for i in rows]), [prompts[i] for i in rows])
        results.update(zip(rows, found, strict=True))
    return [results[i] for i in range(len(images))]


def _finish(job: QueuedRequest, error: Exception | None = None) -> None:
    """The last word on `job`, unless a queue that closes, or who asked, has spoken before."""
    with contextlib.suppress(InvalidStateError):
        if error is not None:
            job.done.set_exception(error)
        else:
            job.done.set_result(job.answer)

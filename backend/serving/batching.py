"""A bounded queue of requests, and one thread that scores them in batches.

Waiting requests are scored together, as many as fit into a batch; a single request does not wait for others.
When a batch fails, each of its requests is scored again by itself, so that one client's prompt does not fail
another's. A reward's scores do not depend on the batch, so batching does not change the answers.
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
from .pictures import PictureFile, decoded

if TYPE_CHECKING:
    from torch import Tensor


ADDRESS_SHARE = 2  # an address may hold one part in so many, of the queue and of the memory
CALL_PIXELS = 2**24  # that a judge sees at once, which bounds what it takes for them: 16 of 1024 x 1024


class QueueFull(RepriseError):
    """There is no room for this request, or the server is stopping. Nothing was done; try again later."""


@dataclass
class RewardResults:
    """By reward: one value per picture (scores or verdicts), or the error."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    errors: dict[str, RepriseError] = field(default_factory=dict)


@dataclass(eq=False)
class QueuedRequest:
    """One request. `pictures` are files, not decoded, so that waiting requests stay small. `address` is the
    client's."""

    pictures: list[PictureFile]
    prompts: list[str]
    rewards: list[str]
    criticize: bool = False
    address: str = ""
    tensors: list[Tensor] = field(default_factory=list)  # (H, W, 3) each, while they are scored
    results: RewardResults = field(default_factory=RewardResults)
    done: Future[RewardResults] = field(default_factory=Future)

    @property
    def pixels(self) -> int:
        return sum(picture.pixels for picture in self.pictures)


class BatchingQueue:
    """Owns `rewards` by name. Holds at most `waiting` requests, of one address half as many; a batch is one
    request, or as many as have up to `batch` pictures and CALL_PIXELS pixels together."""

    def __init__(self, rewards: Iterable[Reward], *, waiting: int = 128, batch: int = 16):
        import torch  # noqa: F401  now, not while the first client waits

        self.rewards: dict[str, Reward] = {reward.spec.name: reward for reward in rewards}
        self.capacity, self.batch = waiting, batch
        self.answered = 0
        self._waiting: deque[QueuedRequest] = deque()
        self._in_work: list[QueuedRequest] = []
        self._last_address = ""
        self._changed = threading.Condition()
        self._open = True
        self._worker = threading.Thread(target=self._work, name="reprise-rewards", daemon=True)
        self._worker.start()

    def infos(self) -> list[RewardInfo]:
        """The rewards' entries in the catalogue, in their order."""
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
        """How many requests wait."""
        return len(self._waiting)

    def submit(self, job: QueuedRequest) -> Future[RewardResults]:
        """Put a request in the queue. Its future fails with BadInput where a picture is damaged.

        Raises QueueFull. Cancelling the future removes a request that is not in work yet.
        """
        with self._changed:
            self._check(job.address)
            self._waiting.append(job)
            self._changed.notify()
        return job.done

    def check(self, address: str) -> None:
        """Raises QueueFull where a request from `address` would be refused now."""
        with self._changed:
            self._check(address)

    def _check(self, address: str) -> None:
        if not self._open:
            raise QueueFull("the server is stopping")
        if len(self._waiting) >= self.capacity:
            raise QueueFull(f"{self.capacity} requests are waiting already; try again later")
        share = -(-self.capacity // ADDRESS_SHARE)
        if sum(job.address == address for job in self._waiting) >= share:
            raise QueueFull(f"{share} requests of your address are waiting already; try again later")

    def close(self, patience: float = 0.0) -> None:
        """Refuse all waiting requests, and those in work unless they finish within `patience` seconds."""
        with self._changed:
            self._open = False
            refused = [*self._waiting]
            self._waiting.clear()
            self._changed.notify()
        for job in refused:
            _finish(job, error=QueueFull("the server is stopping"))
        self._worker.join(patience)
        for job in [*self._in_work]:
            _finish(job, error=QueueFull("the server is stopping"))

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._process(jobs)
            except Exception as error:  # a fault of ours: these requests get it, and the queue stays open
                for job in jobs:
                    _finish(job, error=error)
            with self._changed:
                self._in_work = []

    def _next(self) -> list[QueuedRequest]:
        """The requests of the next batch; none when the queue is closed.

        They are taken in the order in which they came, but the first is of another address than the last
        batch's first, if one waits: nobody waits for all that somebody else sends.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                taken, images, pixels = self._in_work, 0, 0
                while self._waiting:
                    job = self._waiting[0] if taken else self._of_another_address()
                    images, pixels = images + len(job.pictures), pixels + job.pixels
                    full = images > self.batch or pixels > CALL_PIXELS
                    if taken and (full or job.criticize != taken[0].criticize):
                        break
                    self._waiting.remove(job)
                    if job.done.set_running_or_notify_cancel():  # else the client has hung up
                        taken.append(job)
                if taken or not self._open:
                    return taken

    def _of_another_address(self) -> QueuedRequest:
        others = (job for job in self._waiting if job.address != self._last_address)
        job = next(others, self._waiting[0])
        self._last_address = job.address
        return job

    def _process(self, jobs: list[QueuedRequest]) -> None:
        readable = []
        for job in jobs:
            try:
                job.tensors = decoded(job.pictures)
            except RepriseError as error:
                _finish(job, error=error)
            else:
                readable.append(job)
        for name in self.rewards:
            self._score(name, [job for job in readable if name in job.rewards])
        for job in readable:
            job.tensors = []
            self.answered += not job.done.done()  # before the client has its answer
            _finish(job)

    def _score(self, name: str, jobs: list[QueuedRequest]) -> None:
        """Add one reward's values, or its error, to the results of `jobs`."""
        if not jobs:
            return
        call: Callable[..., list[Any]] = verdicts if jobs[0].criticize else image_scores
        images = [image for job in jobs for image in job.tensors]
        prompts = [prompt for job in jobs for prompt in job.prompts]
        try:
            values = iter(by_size(images, prompts, partial(call, self.rewards[name])))
        except RepriseError as error:
            if len(jobs) == 1:
                jobs[0].results.errors[name] = error
                return
            for job in jobs:
                self._score(name, [job])
            return
        for job in jobs:
            job.results.values[name] = [next(values) for _ in job.prompts]


def by_size(
    images: Sequence[Tensor], prompts: Sequence[str], call: Callable[[Tensor, list[str]], list[Any]]
) -> list[Any]:
    """`call` on the pictures (H, W, 3) of each size together, up to CALL_PIXELS at once -> its results in the
    order of `images`."""
    import torch

    groups: dict[Any, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[image.shape].append(i)
    results: dict[int, Any] = {}
    for (height, width, _), group in groups.items():
        most = max(1, CALL_PIXELS // (height * width))
        for start in range(0, len(group), most):
            rows = group[start : start + most]
            values = call(torch.stack([images[i] for i in rows]), [prompts[i] for i in rows])
            results.update(zip(rows, values, strict=True))
    return [results[i] for i in range(len(images))]


def _finish(job: QueuedRequest, error: Exception | None = None) -> None:
    """Complete the job's future, unless `close` or the client did before."""
    with contextlib.suppress(InvalidStateError):
        if error is not None:
            job.done.set_exception(error)
        else:
            job.done.set_result(job.results)

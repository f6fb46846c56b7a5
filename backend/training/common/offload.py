"""The stages of a training step (write, render, score, update): their seconds, and who is on the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...core.interfaces import Renderer, Reward

STAGES = ("write", "render", "score", "update")  # and "wait", for what other processes do


class OffloadRole:
    """Networks that move together, with the state of their optimiser. Both are looked up when they move."""

    def __init__(self, modules: Callable[[], Iterable[Any]], optimizer: Callable[[], Any] = lambda: None):
        self.modules, self.optimizer = modules, optimizer

    def move(self, device: str) -> None:
        import torch

        for module in self.modules():
            module.to(device)
        optimizer = self.optimizer()
        for state in optimizer.state.values() if optimizer is not None else ():
            for key, value in state.items():
                # A step counter lies on the CPU, wherever the weights are.
                if isinstance(value, torch.Tensor) and value.ndim:
                    state[key] = value.to(device)
        if device == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()


class GpuOffload:
    """One role on the GPU at a time; the others wait in main memory.

    Each role is moved once a step, so that more prompts in a step make it cheaper.
    """

    def __init__(self, device: str, roles: Mapping[str, OffloadRole]):
        """`roles` says for a stage which role it needs; stages may share one."""
        self.device, self.roles = device, dict(roles)

    def enter(self, stage: str) -> None:
        """Bring the role of a stage, if it has one, to the GPU; the others leave it first."""
        role = self.roles.get(stage)
        if role is None:
            return
        for other in {id(one): one for one in self.roles.values() if one is not role}.values():
            other.move("cpu")
        role.move(self.device)


class StageTimer:
    """Seconds of each stage, in `seconds`, which is the caller's to reset."""

    def __init__(self, offload: GpuOffload | None = None):
        self.offload = offload
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """A context for the work of one stage."""
        start = time.perf_counter()
        try:
            self.enter(stage)
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def enter(self, stage: str) -> None:
        """Have the stage's role on the GPU, where roles take turns."""
        if self.offload is not None:
            self.offload.enter(stage)


def renderer_modules(renderer: Renderer) -> list[Any]:
    """A renderer's network, which can be moved; none where it draws elsewhere or moves its parts itself."""
    return [] if renderer.model is None else [renderer.model]


def judge_modules(rewards: Iterable[Reward]) -> list[Any]:
    """The networks of learned judges."""
    return [reward.model for reward in rewards if reward.model is not None]

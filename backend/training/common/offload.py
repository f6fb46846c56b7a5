"""The phases of a training step, write, render, score and update: their seconds, and who is on the GPU.

Where there are several processes, `wait` is what one waits for the others' pictures and scores.

With offload, one role is on the device at a time and the others wait in main memory. Each role is
moved once a step, so that more prompts a step make it cheaper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...core.interfaces import Renderer, Reward

NAMES = ("write", "render", "score", "update")


class StageTimer:
    """`movers` take a device's name and move what a phase needs; phases may share one.

    Without movers nothing is moved and time is counted alone. `seconds` is the caller's to reset.
    """

    def __init__(self, device: str = "cpu", movers: Mapping[str, Callable[[str], None]] | None = None):
        self.device, self.movers = device, dict(movers or {})
        self.seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Work of one phase: its role comes to the device, the others leave it first."""
        start = time.perf_counter()
        try:
            self.enter(name)
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def enter(self, name: str) -> None:
        mine = self.movers.get(name)
        if mine is None:
            return
        for mover in {id(m): m for m in self.movers.values() if m is not mine}.values():
            mover("cpu")
        mine(self.device)


def modules_mover(modules: Callable[[], Iterable[Any]], optimizer: Callable[[], Any] = lambda: None):
    """A mover of torch modules and of an optimizer's state, both looked up when they are moved."""

    def move(device: str) -> None:
        import torch

        for module in modules():
            module.to(device)
        kept = optimizer()
        for state in kept.state.values() if kept is not None else ():
            for key, value in state.items():
                # A step counter lies on the CPU, wherever the weights are.
                if isinstance(value, torch.Tensor) and value.ndim:
                    state[key] = value.to(device)
        if device == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    return move


def renderer_modules(renderer: Renderer) -> list[Any]:
    """A renderer's pipeline as something to move; none where it lies elsewhere or moves itself."""
    return [] if renderer.model is None else [renderer.model]


def judge_modules(rewards: Iterable[Reward]) -> list[Any]:
    """The networks of learned judges."""
    return [reward.model for reward in rewards if reward.model is not None]

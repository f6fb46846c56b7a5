"""Shared by all stages: a resumable step loop, the learning-rate schedule, and weight averaging."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def cosine(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.02 + 0.49 * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, done))).item())


def save_whole(state: object, path: Path) -> None:
    """`torch.save` to a temporary file, then rename: a killed run keeps its last complete checkpoint."""
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Updates the moving average of the weights. The decay is lower in the first steps, so that the initial
    weights are forgotten."""
    decay = min(decay, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


class WeightsLoop:
    """Runs `take_step(rng, i)` up to `total` times, with exact resume from `checkpoint`.

    Model, optimizers and both random generators are restored, so a resumed run takes the same steps.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list,
        checkpoint: Path,
        total: int,
        seed: int,
        warmup: int = 200,
        save_every: float = 120.0,
        log: Callable[[str], None] = print,
    ):
        self.model, self.optimizers, self.total = model, optimizers, total
        self.checkpoint, self.warmup, self.save_every, self.log = checkpoint, warmup, save_every, log
        self.rng = random.Random(seed)
        torch.manual_seed(seed)
        self.base_rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
        self.step = 0
        if checkpoint.exists():
            self._load()

    def run(self, take_step: Callable[[random.Random, int], float], log_every: int = 100) -> None:
        saved, started, losses = time.monotonic(), time.monotonic(), []
        while self.step < self.total:
            factor = cosine(self.step, self.total, self.warmup)
            for optimizer, rates in zip(self.optimizers, self.base_rates):
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate * factor
                optimizer.zero_grad(set_to_none=True)
            losses.append(take_step(self.rng, self.step))
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            if self.step % log_every == 0:
                rate = log_every / (time.monotonic() - started)
                mean = sum(losses) / len(losses)
                self.log(f"step {self.step}/{self.total} loss {mean:.4f} {rate:.2f} steps/s")
                started, losses = time.monotonic(), []
            if time.monotonic() - saved > self.save_every:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        version, state, gauss = self.rng.getstate()
        save_whole(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "torch_rng": torch.get_rng_state(),
                "python_rng": [version, list(state), gauss],
            },
            self.checkpoint,
        )

    def _load(self) -> None:
        kept = torch.load(self.checkpoint, weights_only=True)
        self.step = kept["step"]
        self.model.load_state_dict(kept["model"])
        for optimizer, state in zip(self.optimizers, kept["optimizers"]):
            optimizer.load_state_dict(state)
        torch.set_rng_state(kept["torch_rng"])
        version, state, gauss = kept["python_rng"]
        self.rng.setstate((version, tuple(state), gauss))

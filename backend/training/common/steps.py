"""The parts of an optimiser step: learning rate, gradient, numbers that diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import TrainingFailed
from .settings import Optimisation

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer


def learning_rates(config: Optimisation, optimizer: Optimizer, steps: int) -> Callable[[int], list[float]]:
    """How many steps are done -> the learning rate of each parameter group in the next one.

    The groups' rates of now are their peaks; `steps` is the length of the run.
    """
    from transformers import get_scheduler

    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule: Any = get_scheduler(
        config.scheduler,
        optimizer,
        num_training_steps=steps,
        num_warmup_steps=math.ceil(config.warmup_ratio * steps),
    )
    factor = schedule.lr_lambdas[0]
    return lambda done: [peak * factor(done) for peak in peaks]


def autocast(device: torch.device) -> Any:
    """A context that computes in bfloat16 on a GPU that has it."""
    import torch

    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def clip_gradient(weights: Mapping[str, Tensor], max_norm: float, step: int, run: Path) -> float:
    """Clip the gradient to `max_norm`, and return its norm before that.

    Raises TrainingFailed where it is NaN or infinite.
    """
    import torch

    norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), max_norm))
    check_gradient(norm, step, run)
    return norm


def check_loss(loss: Tensor, step: int, run: Path) -> None:
    """Raises TrainingFailed where it is NaN or infinite."""
    if not loss.isfinite():
        raise divergence_error(f"the loss of step {step} is {loss.item()}", run)


def check_gradient(norm: float, step: int, run: Path) -> None:
    """Raises TrainingFailed where its norm is NaN or infinite."""
    if not math.isfinite(norm):
        raise divergence_error(f"the gradient of step {step} is NaN or infinite", run)


def divergence_error(what: str, run: Path, remedy: str = "lower learning_rate") -> TrainingFailed:
    """--resume would only repeat it: it goes on with the same settings, to the same numbers."""
    return TrainingFailed(f"{what}; {remedy}, and begin another run: {run} keeps its settings")

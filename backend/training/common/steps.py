"""The parts of an optimiser step: learning rate, gradient, numbers that diverged, checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import TrainingFailed
from .run_folder import save_error, step_of
from .settings import Optimisation

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

CHECKPOINTS = 2  # how many are on disk


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


def save_checkpoint(
    run: Path,
    step: int,
    files: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    names: Sequence[str],
    state: Mapping[str, Any],
) -> None:
    """Write `checkpoints/checkpoint-STEP`, and delete all but the newest two.

    It holds a safetensors file for each of `files`, AdamW's moments by the `names` of its weights in order,
    and `state` as JSON. That is the last file: where it is, the checkpoint is whole. Raises TrainingFailed.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"checkpoint-{step}"
    stored = optimizer.state_dict()["state"]
    moments = {
        f"{name}.{key}": value for i, name in enumerate(names) for key, value in stored.get(i, {}).items()
    }
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, tensors in files.items():
            whole = {key: one.detach().contiguous() for key, one in tensors.items()}
            save_file(whole, folder / f"{name}.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, **state}))
        for path in sorted(folder.parent.glob("checkpoint-*"), key=step_of)[:-CHECKPOINTS]:
            shutil.rmtree(path)
    except Exception as error:  # safetensors and the file system raise their own kinds
        raise save_error(folder, run, error) from error


def load_checkpoint(
    checkpoint: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    names: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote into the tensors of `files` and the optimiser; returns the state."""
    import torch
    from safetensors.torch import load_file

    with torch.no_grad():
        for name, tensors in files.items():
            stored = load_file(checkpoint / f"{name}.safetensors", device=device)
            for key, one in tensors.items():
                one.copy_(stored[key])
    moments = load_file(checkpoint / "optimizer.safetensors", device=device)
    whole = optimizer.state_dict()
    whole["state"] = {
        i: {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for i, name in enumerate(names)
        if f"{name}.step" in moments
    }
    optimizer.load_state_dict(whole)
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))

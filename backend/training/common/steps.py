"""What the loops of our own share (diffusion-dpo, PRIP's two stages, ppo): how a run is carried out, the
learning rate, numbers that are none, and checkpoints of weights and AdamW's moments."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ...core.errors import BadInput, TrainingFailed, first_line
from ...core.seeds import shuffled_indices
from ...storage.files import write_whole
from . import distributed
from .run_folder import ROUNDS_ASKED, claim_run_folder, step_of, undo_failed_start

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

KEPT = 2  # checkpoints
BEGUN = Path("checkpoints") / "begun.json"
Item = TypeVar("Item")


class LearningRateSettings(Protocol):
    """What a config says of the learning rate over time."""

    @property
    def scheduler(self) -> str: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def warmup_ratio(self) -> float: ...


class TrainingLoop(Protocol):
    def run(self) -> Path: ...


def run_training(
    run: Path, text: str, resume: bool, log: Callable[[str], None], begin: Callable[[], TrainingLoop]
) -> Path:
    """Claim the run folder for the config `text`, `begin` a loop and run it; a finished run's `final/` is
    returned as it is, unless it is asked for another number of rounds. What cannot begin changes nothing."""
    final = run / "final"
    more = ROUNDS_ASKED in distributed.run_on_main(lambda: claim_run_folder(run, text, resume))
    if resume and final.is_dir() and not more:
        log(f"{run} is finished already")
        return final
    from ...core.model_files import quiet_loading

    with quiet_loading():
        with undo_failed_start(run, text, resume):
            loop = begin()
            if more:
                shutil.rmtree(final, ignore_errors=True)  # a copy of a round's; there will be a later one
        return loop.run()


def check_same_data(run: Path, source: object, now: Mapping[str, Any], resumed: bool) -> None:
    """A resumed run learns from what it began with: `now` says what `source` gives, and is kept in the run
    where it begins. Raises BadInput where that changed; runs of earlier versions kept less of it."""
    path = run / BEGUN
    if not resumed:
        write_whole(path, json.dumps(now) + "\n")
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    if any(now.get(name) != value for name, value in kept.items()):
        raise BadInput(
            f"{source} or its pictures changed since {run} began; bring them back, or begin another run"
        )


def pictures_digest(pictures: Iterable[Path]) -> str:
    """Of what is in all of the files, for `check_same_data`. Raises BadInput for one that cannot be read."""
    found = hashlib.sha256()
    for path in dict.fromkeys(pictures):
        try:
            found.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise BadInput(f"cannot read the picture {path}: {error.strerror}; bring it back") from error
    return found.hexdigest()


def learning_rate_factor(config: LearningRateSettings, optimizer: Optimizer) -> Callable[[int], float]:
    """What the peak learning rate is multiplied by before each step, by the steps done."""
    from transformers import get_scheduler

    made: Any = get_scheduler(
        config.scheduler,
        optimizer,
        num_training_steps=config.max_steps,
        num_warmup_steps=math.ceil(config.warmup_ratio * config.max_steps),
    )
    return made.lr_lambdas[0]


def batches_of_step(
    step: int, items: Sequence[Item], each: int, accumulation: int, seed: int
) -> list[list[Item]]:
    """What step `step`, from 1, learns from: `accumulation` batches of `each`, a matter of (seed, step)."""
    count = each * accumulation
    places = range((step - 1) * count, step * count)
    chosen = [items[i] for i in shuffled_indices(len(items), seed, places)]
    return [chosen[first : first + each] for first in range(0, count, each)]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def apply_gradient(
    weights: Mapping[str, Tensor], optimizer: Optimizer, most: float, step: int, run: Path
) -> float:
    """Clip the gradient to the norm `most`, take the optimiser's step, and give the norm as it was.
    Raises TrainingFailed for one that is no number."""
    import torch

    norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), most))
    check_gradient(norm, step, run)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def autocast(device: torch.device) -> Any:
    """bfloat16 on a GPU that has it."""
    import torch

    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def check_loss(loss: Tensor, step: int, run: Path) -> None:
    """Raises TrainingFailed for one that is no number."""
    if not loss.isfinite():
        raise divergence_error(f"the loss of step {step} is {loss.item()}", run)


def check_gradient(norm: float, step: int, run: Path) -> None:
    """Raises TrainingFailed for one that is no number."""
    if not math.isfinite(norm):
        raise divergence_error(f"the gradient of step {step} is no number", run)


def divergence_error(what: str, run: Path, remedy: str = "lower learning_rate") -> TrainingFailed:
    """What --resume would only repeat: it goes on with the same settings, to the same numbers."""
    return TrainingFailed(f"{what}; {remedy}, and begin another run: {run} keeps its settings")


def save_error(path: Path, run: Path, error: Exception) -> TrainingFailed:
    return TrainingFailed(
        f"{path} cannot be written: {first_line(error)}; make room, and go on with --resume {run}"
    )


def save_checkpoint(
    run: Path,
    step: int,
    files: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    names: Sequence[str],
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write `checkpoints/checkpoint-STEP`: a safetensors file of each of `files`, AdamW's moments by the
    `names` of its weights in order, and `state`, whose file is the last and says that it is whole.
    Raises TrainingFailed."""
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"checkpoint-{step}"
    known = optimizer.state_dict()["state"]
    moments = {
        f"{name}.{key}": value for i, name in enumerate(names) for key, value in known.get(i, {}).items()
    }
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, tensors in files.items():
            whole = {key: one.detach().contiguous() for key, one in tensors.items()}
            save_file(whole, folder / f"{name}.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, **(state or {})}))
        for path in sorted(folder.parent.glob("checkpoint-*"), key=step_of)[:-KEPT]:
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
    """Put back into the tensors of `files` and into the optimiser what `save_checkpoint` wrote; the state."""
    import torch
    from safetensors.torch import load_file

    with torch.no_grad():
        for name, tensors in files.items():
            kept = load_file(checkpoint / f"{name}.safetensors", device=device)
            for key, one in tensors.items():
                one.copy_(kept[key])
    kept = load_file(checkpoint / "optimizer.safetensors", device=device)
    known = optimizer.state_dict()
    known["state"] = {
        i: {key: kept[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for i, name in enumerate(names)
        if f"{name}.step" in kept
    }
    optimizer.load_state_dict(known)
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))

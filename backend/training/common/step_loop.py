"""The loop of all trainings that take their own optimiser steps. A method fills in what it learns and how.

What a step takes and all that is random in it follow from (seed, step), so that a stopped run goes on exactly
from its newest checkpoint: the weights, AdamW's moments, and the little that `state` adds.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.seeds import seed_of
from ...reports.training import PICTURES, update_report, write_report
from ...storage.cache import Cache
from ...storage.images import read_picture
from . import distributed
from .checkpoints import load_checkpoint, save_checkpoint, step_of
from .run_folder import append_lines, resume_point, started_from, write_folder
from .steps import check_loss, clip_gradient, learning_rates

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

Figures = dict[str, Any]


class StepLoop(ABC):
    """One run. All that is loaded is loaded when it is made; `run` trains and exports.

    The folder gets a line of `metrics.jsonl` and of tensorboard for each step, one of `evaluations.jsonl` for
    each evaluation, `checkpoints/`, `report.html`, and in the end `final/`.
    """

    config: Any  # has the fields of Run, Optimisation and Evaluations
    weights: dict[str, Parameter]  # what is trained, by the names that checkpoints have for AdamW's moments
    usage: str  # where to put what comes out, for the last line of the log

    def __init__(self, config: Any, run: Path, resume: bool, log: Callable[[str], None]):
        from transformers import set_seed

        self.config, self.folder, self.log = config, run, log
        self.checkpoint = resume_point(run, resume, log)
        self.device = self.choose_device()
        self.stopped = False
        set_seed(config.seed)
        self.load()
        self.optimizer = self.make_optimizer()
        self.learning_rates = learning_rates(self.config, self.optimizer, self.steps)

    # What a method fills in

    @abstractmethod
    def load(self) -> None:
        """Load models and data, and set `weights`. What cannot be trained is refused here."""

    def choose_device(self) -> torch.device:
        import torch

        return torch.device("cuda" if distributed.use_gpu(self.config.device) else "cpu")

    def prepare(self) -> None:  # noqa: B027  (optional)
        """Work that is worth keeping, and takes long, before the checkpoint is loaded."""

    @abstractmethod
    def summary(self) -> str:
        """What the run learns from, for the log: "12 prompts, 3 held out"."""

    @abstractmethod
    def learn(self, step: int) -> Figures:
        """Take optimiser step `step`, from 1, and return its figures."""

    def evaluate(self, step: int) -> tuple[dict[str, float], Figures] | None:
        """(figures, what else is recorded) of what is held out; None where nothing is."""
        return None

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write what the nodes load into an empty folder."""

    def progress_line(self, row: Figures) -> str:
        """The figures of a step that the log shows."""
        return f"loss {row['loss']:.4f}"

    def record_evaluation(self, row: Figures, figures: dict[str, float]) -> bool:
        """Put an evaluation on record; whether training should stop."""
        append_lines(self.folder / "evaluations.jsonl", [json.dumps(row)])
        shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.log(f"evaluation at step {row['step']}: {shown}")
        return False

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.config.max_steps

    def make_optimizer(self) -> Optimizer:
        import torch

        config = self.config
        return torch.optim.AdamW(
            self.weights.values(), config.learning_rate, weight_decay=config.weight_decay
        )

    def tensors(self) -> dict[str, dict[str, Any]]:
        """The tensors of a checkpoint, by file and name."""
        return {"weights": self.weights}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027  (optional)
        """Take up what `state` returned."""

    # How a run goes

    def run(self) -> Path:
        """Train from the start or from the checkpoint, and return `final/`."""
        from torch.utils.tensorboard import SummaryWriter

        self.prepare()
        done = self._load_checkpoint()
        self.log(f"{self.summary()}; {started_from(self.checkpoint)}")
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=done + 1) as self.board:
            if done == 0:
                self.stopped = self._evaluate(0)
            for step in range(done + 1, self.steps + 1):
                if self.stopped:
                    break
                self._take(step)
        final = self.write(self.folder / "final")
        write_report(self.folder, finished=True)
        self.log(f"saved {final}; {self.usage}")
        return final

    def step(self, step: int) -> Figures:
        """Take step `step`, from 1; the line of `metrics.jsonl`."""
        import torch

        start = time.perf_counter()
        torch.manual_seed(seed_of(self.config.seed, "step", step))
        rates = self.learning_rates(step - 1)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        figures = self.learn(step)
        seconds = round(time.perf_counter() - start, 3)
        return {"step": step, **figures, "learning_rate": rates[0], "seconds": seconds}

    def descend(self, step: int, losses: Iterable[Tensor]) -> Figures:
        """One optimiser step down the sum of `losses`, whose backward passes follow each other.

        Raises TrainingFailed for a loss or a gradient that is NaN or infinite.
        """
        total = 0.0
        for loss in losses:
            check_loss(loss, step, self.folder)
            loss.backward()
            total += loss.item()
        norm = clip_gradient(self.weights, self.config.max_grad_norm, step, self.folder)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": total, "grad_norm": norm}

    def write(self, folder: Path) -> Path:
        """Export into `folder`, which is then whole. Raises TrainingFailed where it cannot be written."""
        with write_folder(folder) as part:
            self.export(part)
        return folder

    def copy_for_report(self, picture: Path) -> str:
        """The key of a picture's copy among those that the report shows."""
        cache, key = Cache(self.folder / PICTURES), Cache.key("sample", str(picture))
        if cache.get_image(key) is None:
            cache.put_image(key, read_picture(picture))
        return key

    def _take(self, step: int) -> None:
        config, last = self.config, step == self.steps
        row = self.step(step)
        append_lines(self.folder / "metrics.jsonl", [json.dumps(row)])
        self._show_on_board(row, step)
        self.log(f"step {step}/{self.steps} {self.progress_line(row)} {row['seconds']:.1f} s")
        if last or step % config.eval_every == 0:
            self.stopped = self._evaluate(step)
        if last or self.stopped or step % config.save_every == 0:
            names = list(self.weights)
            save_checkpoint(self.folder, step, self.tensors(), self.optimizer, names, self.state())
        update_report(self.folder)

    def _evaluate(self, step: int) -> bool:
        """Evaluate and put it on record; whether training should stop."""
        start = time.perf_counter()
        found = self.evaluate(step)
        if found is None:
            return False
        figures, more = found
        seconds = round(time.perf_counter() - start, 2)
        self._show_on_board({f"evaluation/{name}": value for name, value in figures.items()}, step)
        return self.record_evaluation({"step": step, **figures, **more, "seconds": seconds}, figures)

    def _show_on_board(self, row: Figures, step: int) -> None:
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, step)

    def _load_checkpoint(self) -> int:
        """Take up the checkpoint, where there is one; the steps that are done."""
        if self.checkpoint is not None:
            names = list(self.weights)
            state = load_checkpoint(self.checkpoint, self.tensors(), self.optimizer, names, str(self.device))
            self.restore(state)
        return step_of(self.checkpoint)

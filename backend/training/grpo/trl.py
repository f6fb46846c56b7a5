"""TRL's GRPOTrainer with our advantages and a figure for the ratio; the callback that logs and stops.

Classes are made inside functions: TRL takes seconds to import.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from ...reports.training import update_report
from ..common import distributed
from ..common.checkpoints import STATE
from ..common.run_folder import append_lines
from ..common.steps import check_gradient, divergence_error
from ..common.trl import saves_whole

# What TRL calls it -> what metrics.jsonl does.
_LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "kl": "kl",
    "entropy": "entropy",
    "ratio/mean": "ratio",
    "ratio/off": "ratio_off",
    "clip_ratio/region_mean": "clipped",
}


class TrainingHooks(Protocol):
    """What TRL's trainer and its callback ask of the loop around them."""

    folder: Path
    checkpoint: Path | None

    def advantages(self) -> list[float]:
        """Of this process's rows of the batch, in TRL's order."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside TRL's own state, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def start_step(self) -> None: ...

    def end_step(self) -> dict[str, Any]:
        """The step's figures."""
        ...

    def evaluate(self, step: int) -> bool:
        """Evaluate where it is time to; whether to stop."""
        ...

    def log_step(self, row: dict[str, Any]) -> None: ...


def trainer_class() -> type:
    """TRL's trainer with our advantages, a figure for the ratio, and a loss that must be finite."""
    import torch
    from trl import GRPOTrainer

    class GrpoTrainer(saves_whole(GRPOTrainer)):
        def __init__(self, *, hooks: TrainingHooks, **options: Any):
            super().__init__(**options)
            self.hooks, self._logps = hooks, None

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            values = self.hooks.advantages()
            output["advantages"] = torch.tensor(values, device=output["advantages"].device)
            return output

        def _get_per_token_logps_and_entropies(self, *arguments, **options):
            found = super()._get_per_token_logps_and_entropies(*arguments, **options)
            if torch.is_grad_enabled():
                self._logps = found[0].detach()
            return found

        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            step = self.state.global_step + 1
            if not torch.isfinite(loss):
                lost = self._logps is not None and not torch.isfinite(self._logps).all()
                raise divergence_error(
                    f"the loss of step {step} is {loss.item()}"
                    + (", and weights are NaN or infinite" if lost else ""),
                    self.hooks.folder,
                    "lower learning_rate, or train in float32" if lost else "lower learning_rate or beta",
                )
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            # Of the policy now to the sampler that wrote: 1 in the first step on a batch, but for rounding.
            ratio = (self._logps - inputs["sampling_per_token_logps"]).exp()[mask]
            found = ratio.new_full((1, 2), math.nan)  # where every sample was dropped
            if len(ratio):
                found = torch.stack([ratio.mean(), (ratio - 1).abs().max()])[None]
            found: Any = self.accelerator.gather(found)  # (processes, 2)
            found = found[~found.isnan().any(1)]
            if len(found):
                self._metrics["train"]["ratio/mean"].append(found[:, 0].mean().item())
                self._metrics["train"]["ratio/off"].append(found[:, 1].max().item())
            return loss

    return GrpoTrainer


def hooks_callback(hooks: TrainingHooks) -> Any:
    """The callback that logs, evaluates, stops, and adds the hooks' state to checkpoints."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Hooks(TrainerCallback, ExportableState):
        def __init__(self):
            self.row: dict[str, Any] = {}
            self.board: Any = None

        def state(self) -> dict:
            return {"args": {}, "attributes": hooks.state()}

        def on_train_begin(self, args, state, control, **kwargs):
            state.compute_steps(args, state.max_steps)  # not the checkpoint's: save_every may have changed
            if hooks.checkpoint is not None:
                stored = json.loads((hooks.checkpoint / STATE).read_text(encoding="utf-8"))
                hooks.restore(stored["stateful_callbacks"]["Hooks"]["attributes"])
            if distributed.is_main():
                board = str(hooks.folder / "tensorboard")
                self.board = SummaryWriter(board, purge_step=state.global_step + 1)
            if state.global_step == 0 and hooks.evaluate(0):
                control.should_training_stop = True

        def on_step_begin(self, args, state, control, **kwargs):
            hooks.start_step()

        def on_step_end(self, args, state, control, **kwargs):
            self.row = hooks.end_step()
            if hooks.evaluate(state.global_step):
                control.should_training_stop = True

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or "loss" not in logs:
                return
            step = state.global_step
            figures = {name: logs[key] for key, name in _LOGGED.items() if logs.get(key) is not None}
            row = {"step": step, **figures, **self.row}
            check_gradient(row.get("grad_norm", 0.0), step, hooks.folder)
            if not distributed.is_main():
                return
            append_lines(hooks.folder / "metrics.jsonl", [json.dumps(row)])
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, step)
            update_report(hooks.folder)
            hooks.log_step(row)

        def on_train_end(self, args, state, control, **kwargs):
            if self.board is not None:
                self.board.close()

    return Hooks()

"""TRL's GRPOTrainer with our advantages and a figure for the ratio; the callback that logs, evaluates, stops.

Classes are made inside functions: TRL takes seconds to import.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

from ...reports.training import write_report
from ..common import distributed
from ..common.run_folder import append_lines, save_error
from ..common.steps import divergence_error
from ..common.trl import saves_together

if TYPE_CHECKING:
    from .loop import GrpoLoop

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


def trainer_class() -> type:
    """TRL's trainer with our advantages, a figure for the ratio, and a loss that must be a number."""
    import torch
    from trl import GRPOTrainer

    class GrpoTrainer(saves_together(GRPOTrainer)):
        def __init__(self, *, loop: GrpoLoop, **options: Any):
            super().__init__(**options)
            self.loop, self._logps = loop, None

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            batch = self.loop.batch
            assert batch is not None
            values = [sample.advantage or 0.0 for _, sample in distributed.local_share(batch.rows)]
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
                    + (", the weights are no numbers any more" if lost else ""),
                    self.loop.folder,
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

        def _save_checkpoint(self, model, trial):
            try:
                super()._save_checkpoint(model, trial)
            except Exception as error:  # safetensors, torch and the file system raise their own kinds
                if distributed.is_peer_loss(error):
                    raise
                raise save_error(self.loop.folder / "checkpoints", self.loop.folder, error) from error

        def create_model_card(self, *arguments, **options):
            pass  # a checkpoint is not for the hub

    return GrpoTrainer


def watch(loop: GrpoLoop) -> Any:
    """The callback that logs, evaluates, stops, and remembers what a checkpoint has to."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Watch(TrainerCallback, ExportableState):
        def __init__(self):
            self.begun, self.row = 0.0, {}
            self.board: Any = None

        def state(self) -> dict:
            kept = {"position": loop.rollouts.stream.position, "recent": loop.recent}
            return {"args": {}, "attributes": kept}

        def on_train_begin(self, args, state, control, **kwargs):
            state.compute_steps(args, state.max_steps)  # not the checkpoint's: save_every may have changed
            if loop.checkpoint is not None:
                kept = json.loads((loop.checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
                kept = kept["stateful_callbacks"]["Watch"]["attributes"]
                loop.rollouts.stream.position, loop.recent = kept["position"], kept["recent"]
            if distributed.is_main():
                board = str(loop.folder / "tensorboard")
                self.board = SummaryWriter(board, purge_step=state.global_step + 1)
            if state.global_step == 0 and loop.evaluate(0):
                control.should_training_stop = True

        def on_step_begin(self, args, state, control, **kwargs):
            self.begun = time.perf_counter()
            loop.timer.seconds.update(dict.fromkeys(loop.timer.seconds, 0.0))
            loop.scorer.drawn = loop.scorer.reused = 0

        def on_step_end(self, args, state, control, **kwargs):
            seconds = loop.timer.seconds
            took = time.perf_counter() - self.begun  # by the main process's clock, as all seconds here
            drawn, reused = distributed.all_sum(loop.scorer.drawn, loop.scorer.reused)
            seconds["update"] = took - sum(value for name, value in seconds.items() if name != "update")
            self.row = {
                **(loop.batch.figures if loop.batch else {}),
                **{f"seconds/{name}": round(value, 3) for name, value in seconds.items()},
                "seconds": round(took, 3),
                "pictures": drawn,
                "pictures_reused": reused,
            }
            if seconds["render"]:
                self.row["pictures_per_second"] = round(drawn / seconds["render"], 3)
            if distributed.is_distributed():
                loop.scorer.cache.recount()
            if loop.batch is not None:
                loop.recent.append(loop.batch.figures["reward"])
                loop.batch = None
            last = state.global_step >= args.max_steps
            if (last or state.global_step % loop.config.eval_every == 0) and loop.evaluate(state.global_step):
                control.should_training_stop = True

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or "loss" not in logs:
                return
            figures = {name: logs[key] for key, name in _LOGGED.items() if logs.get(key) is not None}
            row = {"step": state.global_step, **figures, **self.row}
            if not math.isfinite(row.get("grad_norm", 0.0)):
                raise divergence_error(f"the gradient of step {row['step']} is no number", loop.folder)
            if not distributed.is_main():
                return
            append_lines(loop.folder / "metrics.jsonl", [json.dumps(row)])
            for key, value in row.items():
                if key != "step":
                    self.board.add_scalar(key, value, row["step"])
            write_report(loop.folder)
            loop.log(_said(row, args.max_steps))

        def on_train_end(self, args, state, control, **kwargs):
            if self.board is not None:
                self.board.close()

    return Watch()


def _said(row: dict[str, Any], steps: int) -> str:
    words = [f"step {row['step']}/{steps}", f"loss {row['loss']:.4f}"]
    if "reward" in row:
        words += [
            f"reward {row['reward']:.3f}",
            f"flat {row['zero_variance']:.2f}",
            f"unparsable {row['unparsable']:.2f}",
        ]
    words += [f"{name} {row[name]:.4f}" for name in ("kl", "ratio") if name in row]
    return " ".join([*words, f"{row['seconds']:.1f} s"])

"""What trainings with TRL share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def metrics_callback(path: Path, log: Callable[[str], None]) -> Any:
    """A callback that appends to `path`."""
    from transformers import TrainerCallback

    class Metrics(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            state.compute_steps(args, state.max_steps)  # not the checkpoint's: save_every may have changed

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or not ({"loss", "eval_loss"} & logs.keys()) or not state.is_world_process_zero:
                return
            row = {"step": state.global_step, **logs}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            losses = " ".join(f"{key} {float(row[key]):.4f}" for key in ("loss", "eval_loss") if key in row)
            log(f"step {state.global_step}/{state.max_steps} {losses}")

    return Metrics()

"""What the trainings on TRL share: arguments, callbacks, and the run of those that learn from given texts.

Classes are made inside functions: TRL takes seconds to import.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import distributed
from .checkpoints import STATE, CannotWrite, finish_checkpoint, new_checkpoint
from .lora import merged
from .run_folder import append_lines, export_rewriter, resume_point, started_from
from .settings import RewriterTraining, TextTraining
from .start import load_rewriter


def trl_arguments(config: RewriterTraining, run: Path, gpu: bool) -> dict[str, Any]:
    """Arguments that all of TRL's trainers take, as the settings say."""
    import torch

    return {
        "output_dir": str(run / "checkpoints"),
        "seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.scheduler,
        "warmup_steps": config.warmup_ratio,  # below 1: a share of all steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "save_strategy": "steps",
        "save_steps": config.save_every,
        "save_total_limit": None,  # transformers would also delete a user's copy, such as checkpoint-50-good
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level_replica": "error",
    }


def log_through(trainer: Any, callback: Any) -> None:
    """Let our own callback write the log, in place of transformers'."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)


def saves_whole(trainer: type) -> type:
    """The trainer's class with checkpoints as `checkpoints` promises them, also in several processes."""

    class Whole(trainer):
        def _save_checkpoint(self, model, trial):
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if not self.args.should_save:
                super()._save_checkpoint(model, trial)
                return
            try:
                with new_checkpoint(folder, not distributed.is_distributed()):
                    super()._save_checkpoint(model, trial)
                    finish_checkpoint(folder)
            except CannotWrite as error:
                if error.__cause__ is not None and distributed.is_peer_loss(error.__cause__):
                    raise error.__cause__ from None
                raise

        def _save_rng_state(self, output_dir):
            super()._save_rng_state(output_dir)
            # The state that is written next says that all is there, also the other processes' own.
            self.accelerator.wait_for_everyone()

        def create_model_card(self, *arguments, **options):
            pass  # a checkpoint is not for the hub

    return Whole


def metrics_callback(path: Path, log: Callable[[str], None]) -> Any:
    """A callback that appends to the file of metrics `path`."""
    from transformers import TrainerCallback

    class Metrics(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            state.compute_steps(args, state.max_steps)  # not the checkpoint's: save_every may have changed

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or not ({"loss", "eval_loss"} & logs.keys()) or not state.is_world_process_zero:
                return
            # TRL counts tokens from where this process began, which a run that never stopped does not.
            logs = {key: value for key, value in logs.items() if not key.endswith("num_tokens")}
            row = {"step": state.global_step, **logs}
            append_lines(path, [json.dumps(row)])
            losses = " ".join(f"{key} {float(row[key]):.4f}" for key in ("loss", "eval_loss") if key in row)
            log(f"step {state.global_step}/{state.max_steps} {losses}")

    return Metrics()


def train_from(trainer: Any, checkpoint: Path | None) -> None:
    """Train from the start, or from the checkpoint.

    A run that was killed after its last checkpoint has no step left, where transformers would take one more.
    """
    from transformers import TrainerState

    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if state.global_step >= state.max_steps:
            trainer._load_from_checkpoint(str(checkpoint))
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


class TextLoop(ABC):
    """One run of a rewriter that learns from given texts. A method fills in which, and by which trainer."""

    config: TextTraining

    def __init__(self, config: Any, run: Path, resume: bool, log: Callable[[str], None]):
        from transformers import set_seed

        self.config, self.folder, self.log = config, run, log
        self.gpu = distributed.use_gpu(config.device)
        set_seed(config.seed)
        self.model, self.tokenizer, self.settings, self.system = load_rewriter(config.model, config, self.gpu)
        self.load()
        self.checkpoint = distributed.run_on_main(lambda: resume_point(run, resume, log))
        log(f"{self.summary()}; {started_from(self.checkpoint)}")
        shared = {
            "data_seed": config.seed,
            "num_train_epochs": config.epochs,
            "max_steps": config.max_steps or -1,
            "per_device_train_batch_size": distributed.per_process(config.batch_size),
            "gradient_accumulation_steps": config.accumulation,
            "max_length": config.max_length,
            "logging_steps": config.log_every,
        }
        self.trainer = self.make_trainer({**trl_arguments(config, run, self.gpu), **shared})
        log_through(self.trainer, metrics_callback(run / "metrics.jsonl", log))

    @abstractmethod
    def load(self) -> None:
        """Load and encode the data. Raises BadInput where there is nothing to learn from."""

    @abstractmethod
    def summary(self) -> str:
        """What the run learns from, for the log."""

    @abstractmethod
    def make_trainer(self, arguments: dict[str, Any]) -> Any:
        """TRL's trainer, with these arguments and the method's own."""

    @abstractmethod
    def exported(self) -> dict[str, Any]:
        """The settings that go with the weights of `final/`."""

    def prepare(self) -> None:  # noqa: B027  (optional)
        """Before the first step, once nothing can be refused any more."""

    def run(self) -> Path:
        """Train from the start or from the checkpoint, and return `final/`."""
        final, trainer = self.folder / "final", self.trainer
        self.prepare()
        train_from(trainer, self.checkpoint)

        def export() -> None:
            model = merged(trainer.accelerator.unwrap_model(trainer.model), self.config.export_dtype)
            export_rewriter(final, model, self.tokenizer, self.exported())

        distributed.run_on_main(export)
        self.log(f"saved {final}; as models/reprise/rewriters/NAME nodes and --rewriter know it by name")
        return final

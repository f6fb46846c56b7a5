"""Groups of settings of which the config of every trainer is made.

Each setting is described once, here. A trainer declares one again only for another default or range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]


class Run(Config):
    """Where a training computes, what decides its random numbers, how often it saves."""

    device: Literal["auto", "cpu"] = "auto"
    """Where the trained model computes. auto: on a GPU where there is one. cpu: never on a GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Decides all random numbers: order of the data, new weights, dropout, noise, what is sampled."""
    save_every: PositiveInt = 100
    """Optimiser steps between checkpoints. A killed run loses at most that many steps."""


class Steps(Config):
    """The length of a run that counts steps."""

    max_steps: PositiveInt = 1000
    """Optimiser steps in all, unless the run stops earlier."""


class Epochs(Config):
    """The length of a run that counts passes over its data."""

    epochs: PositiveFloat = 1.0
    """Passes over the training data. Ignored where max_steps is given."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all, in place of epochs."""


class Optimisation(Config):
    """AdamW and its learning rate over time."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate: about 1e-5 for all weights of a language model, 1e-4 for an adapter."""
    scheduler: Scheduler = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""

    @model_validator(mode="after")
    def _warm_up_possible(self) -> Optimisation:
        if self.scheduler == "constant" and self.warmup_ratio:
            raise ValueError(
                "scheduler 'constant' has no warm-up; set warmup_ratio=0, or scheduler=constant_with_warmup"
            )
        return self


class Batches(Config):
    """How many examples one optimiser step learns from."""

    batch_size: PositiveInt = 8
    """Examples in one forward and backward pass, of all processes together."""
    accumulation: PositiveInt = 1
    """Forward and backward passes in one optimiser step."""


class Pairs(Config):
    """Pairs of a better and a worse one."""

    preferences: Path | None = None
    """Folder of pairs that `reprise preferences` filled. Give this, or rounds."""
    reward: str | None = None
    """Learn only from pairs that this reward chose. null: from all pairs."""
    margin: float = Field(0.0, ge=0)
    """Pairs whose scores differ by less are ties and left out; in the units in which they were mined."""


class Evaluations(Config):
    """Evaluations while training."""

    eval_every: PositiveInt = 100
    """Optimiser steps between evaluations. There is one before the first step and one after the last."""


class HeldOutShare(Evaluations):
    """Evaluations on a part of the data."""

    eval_share: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts that are evaluated and not trained on. 0: there are no evaluations."""


class Checkpointing(Config):
    """Activations in memory."""

    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: less memory, a fifth to a third slower."""


class Export(Config):
    """The weights that come out."""

    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Precision of the weights in `final/` (and in `best/`). same: as they are trained, but float32 with an
    adapter, whose small changes bfloat16 would round away. float16 takes half the disk; CPUs compute in
    float32 whatever is stored."""


class LoraSettings(Config):
    """A low-rank adapter in place of full fine-tuning. It is merged into the weights of `final/`."""

    r: PositiveInt = 32
    """Rank of the adapter; 16 to 64 are usual."""
    alpha: PositiveInt = 64
    """The adapter's output is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Modules that get an adapter: all linear layers, or those whose names end so."""

    def adapter(self) -> Any:
        """The same for peft."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )


class Adapter(Run):
    """All weights of a language model, or an adapter; and their precision."""

    lora: LoraSettings | None = None
    """Train a low-rank adapter in place of all weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights while training. auto: bfloat16 with an adapter on a GPU, else float32."""

    @model_validator(mode="after")
    def _updates_fit_into_weights(self) -> Adapter:
        if self.device == "cpu" and self.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                "full fine-tuning in bfloat16 loses small updates, and a CPU saves no time; set dtype=float32"
            )
        return self


class RewriterTraining(Adapter, Optimisation, Export, Checkpointing):
    """A rewriter that learns."""

    model: str
    """The rewriter to start from: a folder, a hub name, or shapeworld for the embedded one."""
    reasoning: bool = True
    """Whether the rewriter gives a reason before the prompt. false: it is trained and used without."""
    system: str | None = None
    """System text, stored with the checkpoint. null: the one stored with `model`, else the default one."""


class TextTraining(Batches, Epochs, RewriterTraining):
    """A rewriter that learns from given texts."""

    max_length: PositiveInt = 1024
    """Longest example in tokens, prompt and answer together. Longer ones are left out, never cut."""
    log_every: PositiveInt = 10
    """Optimiser steps between lines of `metrics.jsonl`."""

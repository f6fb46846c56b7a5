"""Settings of `reprise train judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ..common.lora import LoraSettings
from ..common.start import check_precision, check_schedule

Question = Literal["match", "clarity", "potential", "critique"]


class JudgeConfig(Config):
    """Settings of `reprise train judge`."""

    model: str
    """Folder of a model that --judge vlm: takes, its name under models/reprise/judges, or its hub name."""
    data: Path
    """Questions, pictures and answers; `reprise data judge` makes them."""
    questions: list[Question] = Field(["match", "clarity", "potential", "critique"], min_length=1)
    """What is trained, where the data has it."""
    vision: Literal["train", "frozen"] = "frozen"
    """frozen: the vision tower stays as it is, without adapters too."""
    lora: LoraSettings | None = None
    """Train an adapter only."""
    epochs: PositiveFloat | None = None
    """Passes over the examples to train on; or give max_steps."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all."""
    batch_size: PositiveInt = 8
    """Examples in one forward pass."""
    accumulation: PositiveInt = 1
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate: 1e-5 in full, about 1e-4 with LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while training; auto is bfloat16 for LoRA on a GPU, else float32."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/`; float16 is for storage, CPUs compute in float32. same: as they are trained,
    and float32 (of bfloat16 twice the disk) with an adapter, whose small changes bfloat16 rounds away."""
    gradient_checkpointing: bool = True
    """Less memory, about a fifth slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps off the GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the examples, the adapter's first weights, dropout."""
    save_every: PositiveInt = 100
    """Steps between checkpoints; a killed run loses at most these."""
    eval_every: PositiveInt = 100
    """Steps between evaluations on held-out prompts; there is one before the first step, too."""
    eval_most: PositiveInt = 512
    """Examples of an evaluation, and of the fit of calibrations, where there are more."""

    @model_validator(mode="after")
    def _possible(self) -> JudgeConfig:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give one of epochs and max_steps")
        if len(set(self.questions)) < len(self.questions):
            raise ValueError("questions names one twice; name each once")
        check_schedule(self.scheduler, self.warmup_ratio)
        check_precision(self.device, self.dtype, self.lora)
        return self

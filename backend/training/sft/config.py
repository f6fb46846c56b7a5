"""Settings of `reprise train sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ..common.lora import LoraSettings
from ..common.start import check_precision, check_schedule


class SftConfig(Config):
    """Settings of `reprise train sft`."""

    model: str
    """Folder or hub name of an instruct or chat language model."""
    data: Path
    """JSON lines with `prompt`, `reason`, `rewrite` and perhaps `critique`; see `reprise data rewrites`."""
    eval_data: Path | None = None
    """The same for held-out examples; their loss is logged at every checkpoint."""
    reasoning: bool = True
    """False: the reasons are left out of the answers, and asked for by no one."""
    system: str | None = None
    """System text, kept with the checkpoint; by default the model's own `reprise.json`, then ours."""
    epochs: PositiveFloat = 1.0
    """Passes over the data; ignored where `max_steps` is given."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all."""
    batch_size: PositiveInt = 8
    """Examples in one forward pass, of all processes together; they share them evenly."""
    accumulation: PositiveInt = 1
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate: 1e-5 in full, about 1e-4 with LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    group_by_length: bool = True
    """Batches hold examples of like length: less padding, the same examples an epoch."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and answer together; longer examples are dropped and counted, never cut."""
    lora: LoraSettings | None = None
    """Train an adapter only."""
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
    """Order of the examples, and the adapter's first weights."""
    save_every: PositiveInt = 100
    """Steps between checkpoints; a killed run loses at most these."""
    log_every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`."""
    max_new_tokens: PositiveInt = 512
    """Kept with the checkpoint: how long an answer may get."""
    temperature: PositiveFloat = 0.9
    """Kept with the checkpoint: at which variants are sampled."""

    @model_validator(mode="after")
    def _possible(self) -> SftConfig:
        check_schedule(self.scheduler, self.warmup_ratio)
        check_precision(self.device, self.dtype, self.lora)
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for the prompt in "
                f"max_length={self.max_length}; raise max_length or lower max_new_tokens"
            )
        return self

"""Settings of `reprise train dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ..common.lora import LoraSettings
from ..common.start import check_offload, check_precision, check_schedule
from ..rounds import RoundSettings


class DpoConfig(Config):
    """Settings of `reprise train dpo`."""

    model: str
    """The rewriter to start from, and the reference: a folder or hub name, or shapeworld."""
    preferences: Path | None = None
    """A folder that `reprise preferences mine` filled; with `rounds` each has its own."""
    rounds: RewriterRounds | None = None
    """Write, draw and judge the pairs, too, again and again with what was learned; see `rounds`."""
    reward: str | None = None
    """Learn from this reward's pairs alone."""
    margin: float = Field(0.0, ge=0)
    """Pairs that are closer are ties; in the same parts as when they were mined."""
    reasoning: bool = True
    """False: the reasons are left out of the answers, and asked for by no one."""
    system: str | None = None
    """System text, kept with the checkpoint; by default the model's own `reprise.json`, then ours."""
    beta: PositiveFloat = 0.1
    """How near the reference is kept."""
    epochs: PositiveFloat = 1.0
    """Passes over the pairs; ignored where `max_steps` is given."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all."""
    batch_size: PositiveInt = 8
    """Pairs in one forward pass."""
    accumulation: PositiveInt = 1
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate: 5e-7 to 1e-6 in full, about 5e-6 with LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and answer together; longer pairs are dropped and counted, never cut."""
    lora: LoraSettings | None = None
    """Train an adapter only."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while training; auto is bfloat16 for LoRA on a GPU, else (and with `rounds`) float32."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/`; float16 is for storage, CPUs compute in float32. same: as they are trained,
    and float32 (of bfloat16 twice the disk) with an adapter, whose small changes bfloat16 rounds away."""
    gradient_checkpointing: bool = True
    """Less memory, about a fifth slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps off the GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the pairs, and the adapter's first weights."""
    save_every: PositiveInt = 100
    """Steps between checkpoints; a killed run loses at most these."""
    log_every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`."""

    @model_validator(mode="after")
    def _possible(self) -> DpoConfig:
        check_schedule(self.scheduler, self.warmup_ratio)
        check_precision(self.device, self.dtype, self.lora)
        if (self.preferences is None) == (self.rounds is None):
            raise ValueError("pairs come from a folder, preferences, or from rounds; give one of the two")
        if self.rounds is not None and self.reward is not None:
            raise ValueError("the pairs of rounds are those of rounds.rewards; leave reward out")
        if self.rounds is not None:
            check_offload(self.device, self.rounds.offload)
        if self.rounds is not None and self.dtype == "bfloat16":
            raise ValueError(
                "rounds go on from each other's weights, where bfloat16 loses small changes; leave dtype out"
            )
        if self.lora is not None and self.lora.dropout:
            raise ValueError("dropout makes a rewriter differ from its own reference; set lora.dropout=0")
        return self


class RewriterRounds(RoundSettings):
    """Rounds of `reprise train dpo`."""

    rewards: dict[str, PositiveFloat] = {"image-reward": 1.0, "structure": 0.5, "length": 0.25}
    """Reward -> weight; `structure` is always one of them."""
    rewrites: int = Field(8, ge=2)
    """Rewrites of each prompt."""
    images: PositiveInt = 1
    """Pictures of each rewrite; its score is their mean. All of a prompt share their seeds."""
    prompts_at_once: PositiveInt = 8
    """Prompts that are rewritten, drawn and put on record together."""
    temperature: PositiveFloat = 1.0
    """At which rewrites are sampled."""
    max_new_tokens: PositiveInt = 512
    """Tokens of a rewrite; a longer one is cut off and cannot be read."""
    write_batch: PositiveInt = 64
    """Rewrites written at once."""
    max_dropped: float = Field(0.25, ge=0, lt=1)
    """Share of samples that a failing reward may cost; beyond it the run stops."""

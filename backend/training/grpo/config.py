"""Settings of `reprise train grpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ...factory import check_rewards
from ...renderers.settings import RendererSettings
from ..common.lora import LoraSettings
from ..common.start import check_offload, check_precision, check_schedule


class GrpoConfig(Config):
    """Settings of `reprise train grpo`."""

    model: str
    """The rewriter to start from: a folder or hub name, or shapeworld for the embedded one."""
    init: Literal["weights", "random"] = "weights"
    """random: keep the architecture and the tokenizer, and start from new weights."""
    reasoning: bool = True
    """False: the rewriter is not asked for a reason, and an answer without one has its full structure."""
    system: str | None = None
    """System text, kept with the checkpoint; by default the model's own `reprise.json`, then ours."""
    prompts: str
    """A file with a prompt a line (text, or JSON with `prompt` and `judged_as`), or shapeworld:N."""
    eval_prompts: str | None = None
    """The same for evaluations; they must not be among `prompts`."""
    paraphrases: str | None = None
    """The same again, prompts in other words; `judged_as` says what the judges are to read."""
    renderer: RendererSettings = RendererSettings()
    """What draws."""
    rewards: dict[str, PositiveFloat] = {"image-reward": 1.0, "structure": 0.5, "length": 0.25}
    """Reward -> weight, after each is normalised in its group; `structure` is always one of them."""
    held_out: list[str] = []
    """Rewards that are scored and logged and never trained on; the first one says how training goes."""
    prompts_per_step: PositiveInt = 8
    """Groups in one optimiser step, of all processes together."""
    rewrites: int = Field(8, ge=2)
    """Rewrites of each prompt, the size of a group."""
    originals: int = Field(0, ge=0)
    """How often the prompt as it was typed counts in its group's statistics; it is drawn once."""
    images: PositiveInt = 1
    """Pictures of each rewrite; its score is their mean. All of a group share their seeds."""
    max_steps: PositiveInt = 200
    """Optimiser steps, unless it stops earlier."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate: 1e-6 in full, 5e-6 with LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant_with_warmup"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    beta: float = Field(0.001, ge=0)
    """Weight of the KL divergence from the first weights; 0 keeps no second model."""
    epsilon_low: float = Field(0.2, gt=0, lt=1)
    """The ratio of new to old probability counts down to 1 - this."""
    epsilon_high: float = Field(0.28, gt=0)
    """And up to 1 + this."""
    loss: Literal["dapo", "dr_grpo", "grpo"] = "dapo"
    """dapo: mean over the batch's tokens; dr_grpo: over a constant; grpo: over each answer, then answers."""
    iterations: PositiveInt = 1
    """Optimiser steps on the same rollouts."""
    temperature: PositiveFloat = 1.0
    """At which rewrites are sampled while training."""
    max_new_tokens: PositiveInt = 512
    """Tokens of an answer; a longer one is cut off and cannot be read."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are at most this far from 0."""
    std_floor: float = Field(0.02, ge=0)
    """Scores of a group that vary less (standard deviation, in parts of the reward's range) count as tied."""
    resample: int = Field(1, ge=0)
    """How often, in one step, groups without signal are replaced by other prompts."""
    max_dropped: float = Field(0.25, ge=0, lt=1)
    """Share of samples that a failing reward may cost a step; beyond it the run stops."""
    batch_size: PositiveInt = 8
    """Answers in one forward and backward pass, of all processes together; they share them evenly."""
    write_batch: PositiveInt = 64
    """Answers written at once, by each process."""
    lora: LoraSettings | None = None
    """Train an adapter only."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while training; auto is bfloat16 for LoRA on a GPU, else float32."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/` and `best/`. same: as they are trained, and float32 (of bfloat16 twice the
    disk) with an adapter, whose small changes bfloat16 rounds away."""
    gradient_checkpointing: bool = True
    """Less memory, about a fifth slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps the rewriter off the GPU."""
    offload: bool = False
    """One role on the GPU at a time: rewriter, renderer and judges take turns, once a step."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the prompts' order, of what is written and of what is drawn."""
    save_every: PositiveInt = 10
    """Steps between checkpoints; a killed run loses at most these."""
    eval_every: PositiveInt = 10
    """Steps between evaluations; there is one before the first step, too."""
    patience: int = Field(3, ge=0)
    """Stop when over so many evaluations training reward rose and held-out reward fell; 0: never."""
    keep_gb: PositiveFloat = 20.0
    """Pictures kept on disk; beyond it those used longest ago go."""

    @model_validator(mode="after")
    def _possible(self) -> GrpoConfig:
        check_rewards(self.rewards, self.held_out)
        if "structure" not in self.rewards:
            raise ValueError(
                "without 'structure' an answer that cannot be read is no worse than the worst picture; add "
                "it to rewards, for example structure: 0.5"
            )
        if not set(self.rewards) - {"structure", "length"}:
            raise ValueError("no reward looks at the pictures; add one, such as image-reward: 1.0")
        rows = self.prompts_per_step * self.rewrites
        if rows % self.batch_size:
            raise ValueError(
                f"a step has {self.prompts_per_step} x {self.rewrites} = {rows} answers, which batches of "
                f"{self.batch_size} do not divide; set batch_size to a divisor of {rows}"
            )
        if self.save_every % self.iterations:
            raise ValueError(
                f"a checkpoint after {self.save_every} steps would fall between the {self.iterations} steps "
                "on one batch of rollouts; set save_every to a multiple of iterations"
            )
        check_schedule(self.scheduler, self.warmup_ratio)
        if self.init == "random" and self.lora is not None:
            raise ValueError("an adapter on random weights can learn nothing; take lora or init away")
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                "dropout trains another policy than the one that wrote, so that the ratio is never 1; set "
                "lora.dropout=0"
            )
        check_precision(self.device, self.dtype, self.lora)
        check_offload(self.device, self.offload)
        return self

"""Settings of `reprise train ppo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ...factory import check_rewards
from ...renderers.settings import RendererSettings
from ..common.start import check_offload, check_schedule


class PpoConfig(Config):
    """Settings of `reprise train ppo`."""

    init: str
    """The refiner to start from: a folder of the first two stages, or shapeworld for the embedded one."""
    prompts: str
    """A file with a prompt a line (text, or JSON with `prompt` and `judged_as`), or shapeworld:N."""
    eval_prompts: str | None = None
    """The same for evaluations; they must not be among `prompts`."""
    renderer: RendererSettings = RendererSettings()
    """What draws."""
    rewards: dict[str, PositiveFloat] = {"image-reward": 1.0, "hps-v2.1": 1.0}
    """Reward -> weight, of what it says more of the refined prompt than of the user's own, once scaled."""
    scaling: Literal["range", "running"] = "range"
    """range: by each reward's usual range; running: by the spread of its differences seen so far."""
    held_out: list[str] = []
    """Rewards that are scored and logged and never trained on; the first one says how training goes."""
    prompts_per_step: PositiveInt = 64
    """Users' prompts in one step."""
    rewrites: PositiveInt = 1
    """Refinements of each, all drawn from the same seeds."""
    group_baseline: bool = False
    """Gains are compared with the mean gain of the prompt's other refinements before the critic is asked:
    what the user's own picture scored by its seed, which no critic can know, falls out."""
    pictures: PositiveInt = 1
    """Pictures of each refinement and of the user's own prompt; scores are their means."""
    max_steps: PositiveInt = 1000
    """Steps, each with rollouts of its own, unless it stops earlier."""
    epochs: PositiveInt = 2
    """How often a step learns from its rollouts."""
    minibatches: PositiveInt = 1
    """Optimiser steps in an epoch, each on an equal share of the rollouts."""
    batch_size: PositiveInt = 8
    """Rows in one forward and backward pass; it changes memory and speed alone."""
    write_batch: PositiveInt = 64
    """Rows written at once."""
    learning_rate: PositiveFloat = 1e-5
    """The encoder's peak learning rate; to be swept from 1e-5 up, the paper says 1e-3."""
    critic_learning_rate: PositiveFloat = 1e-3
    """The critic's."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant_with_warmup"
    """Shape of both learning rates after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which they rise."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients of encoder and critic are clipped to this norm, each by itself."""
    clip: float = Field(0.2, gt=0, lt=1)
    """The ratio of new to old probability counts between 1 - this and 1 + this."""
    value_clip: PositiveFloat = 0.2
    """What the critic says counts as far as it is within this of what it said before the step."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """How far a token is credited with what comes later; rewards are not discounted."""
    whiten: bool = True
    """Advantages of a step are brought to mean 0 and standard deviation 1."""
    kl: float = Field(0.05, ge=0)
    """Weight of the KL divergence, per token, from what is written to the first pivots."""
    kl_target: PositiveFloat | None = None
    """Adapt that weight, a little each step, so that the divergence comes near this; None: it is fixed."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the squared distance to the first pivots, a mean over their numbers."""
    critic_width: PositiveInt = 128
    """Hidden units of the critic."""
    temperature: PositiveFloat = 1.0
    """At which refinements are sampled while training."""
    max_new_tokens: PositiveInt | None = None
    """Tokens of what is added; by default as the refiner's own settings say."""
    max_dropped: float = Field(0.25, ge=0, lt=1)
    """Share of samples that a failing reward may cost a step; beyond it the run stops."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen decoder; the encoder is float32. auto: bfloat16 on a GPU that has it."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/` and `best/`."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps the refiner off the GPU."""
    offload: bool = False
    """One role on the GPU at a time: refiner, renderer and judges take turns, once a step."""
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
    def _possible(self) -> PpoConfig:
        check_rewards(self.rewards, self.held_out)
        if "structure" in {*self.rewards, *self.held_out}:
            raise ValueError(
                "a refiner gives no reason, and all that it writes can be read; take "
                "'structure' out of the rewards"
            )
        if not set(self.rewards) - {"length"}:
            raise ValueError("no reward looks at the pictures; add one, such as image-reward: 1.0")
        rows = self.prompts_per_step * self.rewrites
        if rows % self.minibatches:
            raise ValueError(
                f"a step has {self.prompts_per_step} x {self.rewrites} = {rows} rows, which "
                f"{self.minibatches} minibatches do not share evenly; set minibatches to a divisor of {rows}"
            )
        if self.group_baseline and self.rewrites < 2:
            raise ValueError("group_baseline compares a prompt's refinements; set rewrites to 2 or more")
        if self.kl_target is not None and not self.kl:
            raise ValueError("a weight of 0 stays 0 when it is adapted; set kl=0.05, or leave kl_target out")
        check_offload(self.device, self.offload)
        check_schedule(self.scheduler, self.warmup_ratio)
        return self

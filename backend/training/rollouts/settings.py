"""Settings of rollouts: what is written, drawn and scored, whatever method learns from it."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ...factory import check_roles
from ...renderers.settings import RendererSettings
from ..common.settings import Evaluations, Export, Optimisation, Run, Scheduler, Steps


class DrawingSettings(Config):
    """Prompts, what draws them, what scores the pictures."""

    prompts: str
    """Prompts to train on: a file with one a line (text, or JSON with `prompt` and, for the judge,
    `judged_as`), or shapeworld:N, N prompts of each task of the embedded world."""
    eval_prompts: str | None = None
    """Prompts of evaluations, given in the same way; none may be among `prompts`. null: no evaluations."""
    renderer: RendererSettings = RendererSettings()
    """What draws the pictures."""
    rewards: dict[str, PositiveFloat] = {"image-reward": 1.0}
    """Name of a reward -> its weight. Each reward is first brought to 0..1 by its range."""
    held_out: list[str] = []
    """Rewards that are measured and never trained on. The first that looks at pictures selects `best/`."""
    offload: bool = False
    """Only one role is on the GPU at a time (the model that writes, the renderer, the judges), the others
    wait in main memory. Slower, for small GPUs."""
    keep_gb: PositiveFloat = 20.0
    """Gigabytes of pictures kept on disk. Beyond it those that were used longest ago are deleted."""

    @model_validator(mode="after")
    def _roles_exist(self) -> DrawingSettings:
        check_roles(self.renderer, self.rewards, self.held_out)
        return self


class RolloutSettings(DrawingSettings):
    """What a language model writes for the prompts."""

    rewrites: PositiveInt = 8
    """Rewrites of each prompt. All of a prompt are drawn from the same seeds."""
    temperature: PositiveFloat = 1.0
    """Temperature at which rewrites are sampled while training."""
    write_batch: PositiveInt = 64
    """Rewrites that are written at once, by each process."""
    max_dropped: float = Field(0.25, ge=0, lt=1)
    """Share of rewrites that may be dropped because a reward fails for them. Beyond it the run stops."""


class RewriteSettings(RolloutSettings):
    """What a rewriter writes that gives a reason and a prompt."""

    rewards: dict[str, PositiveFloat] = {"image-reward": 1.0, "structure": 0.5, "length": 0.25}
    """Name of a reward -> its weight; `structure` must be one of them. GRPO normalises each reward in its
    group first; rounds of DPO bring each to 0..1 by its range."""
    rewrites: int = Field(8, ge=2)
    images: PositiveInt = 1
    """Pictures of each rewrite. Its score is their mean."""
    max_new_tokens: PositiveInt = 512
    """Longest answer in tokens. A longer one is cut off, and then cannot be read."""

    @model_validator(mode="after")
    def _unreadable_answers_are_worst(self) -> RewriteSettings:
        if "structure" not in self.rewards:
            raise ValueError(
                "without 'structure' an answer that cannot be read is no worse than the worst picture; add "
                "it to rewards, for example structure: 0.5"
            )
        return self


class PolicySettings(RolloutSettings, Run, Steps, Evaluations, Optimisation, Export):
    """A policy that learns from its own rollouts, step by step."""

    prompts_per_step: PositiveInt
    """Prompts in one step, of all processes together."""
    batch_size: PositiveInt = 8
    """Rewrites in one forward and backward pass, of all processes together."""
    scheduler: Scheduler = "constant_with_warmup"
    save_every: PositiveInt = 10
    eval_every: PositiveInt = 10
    patience: int = Field(3, ge=0)
    """Stop when over that many evaluations the training reward rose and the held-out one fell. 0: never."""

    @model_validator(mode="after")
    def _something_to_offload(self) -> PolicySettings:
        check_offload(self.device, self.offload)
        return self


class RoundSettings(DrawingSettings):
    """Rounds of drawing, judging and learning."""

    count: PositiveInt = 3
    """Rounds. A finished run goes on with more of them, never with fewer: --resume RUN rounds.count=N."""
    per_round: PositiveInt | None = None
    """Prompts of one round, taken in turn. null: all of them."""
    patience: int = Field(2, ge=0)
    """Stop when that many rounds in a row brought no better evaluation. 0: never."""


def check_offload(device: str, offload: bool) -> None:
    """Raises ValueError for roles that take turns on a GPU that none of them may use."""
    if device == "cpu" and offload:
        raise ValueError(
            "offload moves roles off the GPU, and device=cpu puts none there; drop one of the two"
        )

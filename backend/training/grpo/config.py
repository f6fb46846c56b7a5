"""Settings of `reprise train grpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..common.settings import RewriterTraining
from ..rollouts.settings import PolicySettings, RewriteSettings


class GrpoConfig(RewriteSettings, PolicySettings, RewriterTraining):
    """Settings of `reprise train grpo`."""

    init: Literal["weights", "random"] = "weights"
    """random: keep the model's architecture and tokenizer, and start from new weights."""
    paraphrases: str | None = None
    """A second set of prompts for evaluations: the same wishes in other words, where `judged_as` holds the
    words for the judge."""
    prompts_per_step: PositiveInt = 8
    """Groups in one optimiser step, of all processes together. A group is the rewrites of one prompt."""
    originals: int = Field(0, ge=0)
    """How many times the prompt as typed counts in its group's statistics. It is drawn once."""
    max_steps: PositiveInt = 200
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate: 1e-6 for all weights, 5e-6 for an adapter."""
    beta: float = Field(0.001, ge=0)
    """Weight of the KL divergence from the first weights. 0: no second model is in memory."""
    epsilon_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip range: the ratio of new to old probability counts down to 1 - epsilon_low."""
    epsilon_high: float = Field(0.28, gt=0)
    """Upper clip range: the ratio of new to old probability counts up to 1 + epsilon_high."""
    loss: Literal["dapo", "dr_grpo", "grpo"] = "dapo"
    """dapo: mean over all tokens of the batch. dr_grpo: sum over tokens, divided by a constant. grpo: mean
    over the tokens of each answer, then over the answers."""
    iterations: PositiveInt = 1
    """Optimiser steps on the same rollouts."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are clipped to this distance from 0."""
    std_floor: float = Field(0.02, ge=0)
    """Scores of a group with a smaller standard deviation, in parts of the reward's range, count as tied."""
    resample: int = Field(1, ge=0)
    """How many times in one step groups without signal are replaced by other prompts."""

    @model_validator(mode="after")
    def _possible(self) -> GrpoConfig:
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
        if self.init == "random" and self.lora is not None:
            raise ValueError("an adapter on random weights can learn nothing; take lora or init away")
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                "dropout trains another policy than the one that wrote, so that the ratio is never 1; set "
                "lora.dropout=0"
            )
        return self

"""Settings of `reprise train ppo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..rollouts.settings import PolicySettings


class PpoConfig(PolicySettings):
    """Settings of `reprise train ppo`."""

    init: str
    """The refiner to start from: a folder made by prip-decoder and prip-encoder, or shapeworld for the
    embedded one."""
    rewards: dict[str, PositiveFloat] = {"image-reward": 1.0, "hps-v2.1": 1.0}
    """Name of a reward -> its weight. What counts is by how much the refined prompt's pictures score above
    those of the user's own prompt, brought to one scale by `scaling`."""
    scaling: Literal["range", "running"] = "range"
    """range: divide by each reward's usual range. running: by the spread of its differences so far."""
    prompts_per_step: PositiveInt = 64
    rewrites: PositiveInt = 1
    group_baseline: bool = False
    """Subtract the mean gain of the prompt's other refinements before the value head is used. This takes out
    what the user's own picture scored by its seed, which no value head can know. Needs rewrites >= 2."""
    pictures: PositiveInt = 1
    """Pictures of each refinement and of the user's own prompt. Scores are their means."""
    epochs: PositiveInt = 2
    """How many times a step learns from its rollouts."""
    minibatches: PositiveInt = 1
    """Optimiser steps in an epoch, each on an equal share of the rollouts."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate of the encoder. Try values from 1e-5 up; the paper says 1e-3."""
    critic_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the value head, with the same schedule."""
    clip: float = Field(0.2, gt=0, lt=1)
    """Clip range: the ratio of new to old probability counts between 1 - clip and 1 + clip."""
    value_clip: PositiveFloat = 0.2
    """A new value counts as far as it is within this distance of the value before the step."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """How far a token is credited with what comes later (lambda of generalised advantage estimation).
    Rewards are not discounted."""
    whiten: bool = True
    """Bring the advantages of a step to mean 0 and standard deviation 1."""
    kl: float = Field(0.05, ge=0)
    """Weight of the KL divergence, per token, from what the first pivots would write."""
    kl_target: PositiveFloat | None = None
    """Adapt that weight after each step to bring the divergence near this value. null: it is fixed."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the mean squared distance of pivots from the first pivots."""
    critic_width: PositiveInt = 128
    """Hidden units of the value head."""
    max_new_tokens: PositiveInt | None = None
    """Longest addition to a prompt in tokens. null: as stored with the refiner."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen decoder; the encoder is float32. auto: bfloat16 on a GPU that has it."""

    @model_validator(mode="after")
    def _possible(self) -> PpoConfig:
        if "structure" in {*self.rewards, *self.held_out}:
            raise ValueError(
                "a refiner gives no reason, and all that it writes can be read; take "
                "'structure' out of the rewards"
            )
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
        return self

"""Settings of `reprise train judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..common.settings import Adapter, Batches, Checkpointing, Epochs, Evaluations, Export, Optimisation

Question = Literal["match", "clarity", "potential", "critique"]


class JudgeConfig(Batches, Epochs, Evaluations, Optimisation, Adapter, Export, Checkpointing):
    """Settings of `reprise train judge`."""

    model: str
    """The judge to start from: a folder that --judge vlm: takes, its name under models/reprise/judges, or a
    hub name."""
    data: Path
    """Questions, pictures and answers. `reprise data judge` makes them."""
    questions: list[Question] = Field(["match", "clarity", "potential", "critique"], min_length=1)
    """The questions that are trained, as far as the data has them."""
    vision: Literal["train", "frozen"] = "frozen"
    """frozen: the vision tower stays as it is, and gets no adapter."""
    epochs: PositiveFloat | None = None
    """Passes over the training data. Give this, or max_steps."""
    eval_most: PositiveInt = 512
    """At most that many examples are used for an evaluation, and for fitting calibrations."""

    @model_validator(mode="after")
    def _possible(self) -> JudgeConfig:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give one of epochs and max_steps")
        if len(set(self.questions)) < len(self.questions):
            raise ValueError("questions names one twice; name each once")
        return self

"""Settings of `reprise train dpo`."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..common.settings import Pairs, TextTraining
from ..rollouts.settings import RewriteSettings, RoundSettings, check_offload


class RewriterRounds(RewriteSettings, RoundSettings):
    """Rounds of `reprise train dpo`."""

    prompts_at_once: PositiveInt = 8
    """Prompts that are rewritten, drawn and recorded together."""


class DpoConfig(Pairs, TextTraining):
    """Settings of `reprise train dpo`."""

    rounds: RewriterRounds | None = None
    """Write, draw and judge the pairs as well, again and again with the newest rewriter."""
    beta: PositiveFloat = 0.1
    """How closely the policy is held to the model that it starts from; larger is closer."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate: 5e-7 to 1e-6 for all weights, about 5e-6 for an adapter."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _possible(self) -> DpoConfig:
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

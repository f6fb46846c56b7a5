"""Settings of `reprise train sft`."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt, model_validator

from ..common.settings import TextTraining


class SftConfig(TextTraining):
    """Settings of `reprise train sft`."""

    model: str
    """The model to start from: any instruct or chat language model, as a folder or a hub name, or shapeworld
    for the embedded rewriter."""
    data: Path
    """Examples: JSON lines with `prompt`, `reason`, `rewrite` and, optionally, `critique`. `reprise data
    rewrites` makes them."""
    eval_data: Path | None = None
    """Held-out examples in the same form; their loss is logged at every checkpoint."""
    group_by_length: bool = True
    """Put examples of similar length into one batch: less padding, the same examples in an epoch."""
    max_new_tokens: PositiveInt = 512
    """Stored with the checkpoint: longest answer in tokens."""
    temperature: PositiveFloat = 0.9
    """Stored with the checkpoint: temperature at which variants are sampled."""

    @model_validator(mode="after")
    def _answers_fit(self) -> SftConfig:
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for the prompt in "
                f"max_length={self.max_length}; raise max_length or lower max_new_tokens"
            )
        return self
